"""What holds of the tree as a whole: who may import whom, names, and what ships."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignflow.recipe import METHODS

ROOT = Path(__file__).parent.parent
CORE = ["recipe", "errors", "artifacts", "files", "settings", "stage", "events", "plan", "sources"]


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every absolute module name that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def offenders(paths: list[Path], *packages: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if name.split(".")[0] in packages
    ]


def test_the_library_never_imports_prefect() -> None:
    assert offenders(modules("alignflow"), "prefect") == []


def test_only_the_command_line_imports_flows() -> None:
    allowed = {ROOT / "alignflow/cli.py", *modules("alignflow/commands")}
    library = [path for path in modules("alignflow") if path not in allowed]
    assert offenders(library, "flows", "tasks") == []


def test_only_tracking_imports_mlflow() -> None:
    library = [path for path in modules("alignflow") if path.name != "tracking.py"]
    assert offenders([*library, *modules("flows"), *modules("tasks")], "mlflow") == []


def test_flows_hold_order_only() -> None:
    assert offenders(modules("flows"), "torch", "transformers", "trl", "peft", "numpy") == []
    for path in modules("flows"):
        assert not any(isinstance(node, ast.Try) for node in ast.walk(ast.parse(path.read_text())))


def test_training_runs_on_a_bare_machine_and_stages_do_not_import_each_other() -> None:
    training = modules("alignflow/training")
    assert offenders(training, "prefect", "mlflow", "flows", "tasks") == []
    stages = {"pretrain", "sft", "reward", *METHODS}
    for path in training:
        siblings = {f"alignflow.training.{stage}" for stage in stages - {path.stem}}
        assert not siblings & set(imports(path)), path


@pytest.mark.parametrize("folder", ["flows", "tasks"])
def test_no_file_has_the_name_of_an_importable_module(folder: str) -> None:
    for path in modules(folder):
        found = importlib.util.find_spec(path.stem) if path.stem != "__init__" else None
        assert found is None or found.origin is None, path  # a folder of tests has no origin


@pytest.mark.parametrize("module", [f"alignflow.{name}" for name in CORE] + ["flows.finetune"])
def test_importing_the_core_or_a_flow_loads_no_training_library(module: str) -> None:
    code = (
        f"import {module}, sys; "
        "print([m for m in ('torch', 'transformers', 'trl', 'mlflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_no_file_is_called_utils() -> None:
    names = {path.stem for folder in ("alignflow", "flows", "tasks") for path in modules(folder)}
    assert not names & {"utils", "helpers", "misc"}


def test_the_lock_names_no_address() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text()
