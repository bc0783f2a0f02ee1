"""A small recipe on the embedded model, and variations of it, for the tests of `check`."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignflow.builtin import base_model_directory
from alignflow.checking import rows, template
from alignflow.checking.checked import Check, check_file
from alignflow.checking.findings import Finding

GOOD: dict[str, Any] = {
    "name": "small",
    "base_model": "builtin:freight-base",
    "data": {
        "sft": "builtin:freight-sft",
        "preferences": "builtin:freight-preferences",
        "evaluation": "builtin:freight-evaluation",
        "general": "builtin:freight-general",
    },
    "sft": {"learning_rate": 1e-3, "max_length": 192},
    "method": "dpo",
    "dpo": {"learning_rate": 1e-3, "max_length": 192},
}


def changed(**fields: Any) -> dict[str, Any]:
    """The good recipe with dotted fields set (`data__sft=...`); None removes one, but leaves sft off."""
    recipe = json.loads(json.dumps(GOOD))
    for name, value in fields.items():
        *sections, field = name.split("__")
        place = recipe
        for section in sections:
            place = place.setdefault(section, {})
        if value is None and name != "sft":
            place.pop(field, None)
        else:
            place[field] = value
    return recipe


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@contextmanager
def without_children() -> Iterator[None]:
    """A check reads rows and templates here, and spares two starts of Python."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows, "run_limited", _called)
        patched.setattr(template, "run_limited", _called)
        yield


def _called(task: str, payload: Any, **limits: Any) -> Any:
    module, _, function = task.partition(":")
    answer = getattr(importlib.import_module(module), function)(json.loads(json.dumps(payload)))
    return json.loads(json.dumps(answer))


def checked(folder: Path, *, full: bool = False, **fields: Any) -> Check:
    """A check of the good recipe with these fields set, without children."""
    with without_children():
        return check_file(write_recipe(folder, changed(**fields)), home=folder, full=full)


def errors(found: Check) -> list[Finding]:
    return [finding for finding in found.findings if finding.level == "error"]


def lines(found: Check, level: str) -> str:
    return "\n".join(finding.line for finding in found.findings if finding.level == level)


def model_copy(folder: Path) -> Path:
    """A copy of the embedded base model."""
    return Path(shutil.copytree(base_model_directory("freight-base"), folder / "model"))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def demonstrations(count: int, words: int = 3) -> list[dict[str, Any]]:
    return [
        {"prompt": f"list truck {n}", "completion": "select name " * words} for n in range(count)
    ]
