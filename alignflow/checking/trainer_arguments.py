"""`trainer_args` against TRL's configuration classes, read from their source and not imported."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignflow.checking.findings import Finding, error
from alignflow.recipe import TRAINING_STAGES
from alignflow.training.engine import RESERVED

PARENTS = (
    ("trl/trainer/base_config.py", "_BaseConfig"),
    ("transformers/training_args.py", "TrainingArguments"),
)


def trainer_argument_findings(stage: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    """Arguments that the stage's class does not have, or that the recipe sets elsewhere."""
    if not given or TRAINING_STAGES[stage].arguments is None:
        return
    known = known_arguments(stage)
    for name, value in given.items():
        field = f"{stage}.trainer_args.{name}"
        if name in RESERVED:
            yield error(field, f"is set by {RESERVED[name]}; leave it out.")
        elif known and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {close[0]}?" if close else " Check its name."
            yield error(field, f"(here {value!r}) is no argument of {class_of(stage)[1]}.{meant}")


def class_of(stage: str) -> tuple[str, str]:
    """File and name of a stage's configuration class."""
    module, _, name = (TRAINING_STAGES[stage].arguments or "").partition(":")
    return f"{module.replace('.', '/')}.py", name


@cache
def known_arguments(stage: str) -> frozenset[str]:
    """Names of the fields of a stage's configuration class, those it inherits included."""
    own = class_of(stage)
    classes = (own,) if own in PARENTS else (own, *PARENTS)
    return frozenset(name for file, kind in classes for name in _fields(file, kind))


def _fields(file: str, kind: str) -> Iterator[str]:
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)  # does not import a top-level package
    if spec is None or not spec.submodule_search_locations:
        return
    path = Path(spec.submodule_search_locations[0]) / rest
    if not path.is_file():
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield part.target.id
