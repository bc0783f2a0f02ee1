"""What holds of the tree as a whole: who may import whom, names, and what ships."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignflow.recipe import METHODS

ROOT = Path(__file__).parent.parent
CORE = [
    *("alignflow", "alignflow.recipe", "alignflow.errors", "alignflow.files", "alignflow.settings"),
    *("alignflow.stages.artifacts", "alignflow.stages.spec", "alignflow.pipeline.plan"),
    *("flows.finetune", "flows.retrain"),
]
FLOORS = (
    ("errors", "files", "settings", "faults"),
    ("sql",),
    ("builtin",),
    ("recipe",),
    ("stages",),
    ("data",),
    ("models",),
    ("ledger",),
    ("evaluation",),
    ("merging.certificate",),
    ("merging.planning",),
    ("merging.writing",),
    ("merging.verifying",),
    ("merging",),
    ("training", "training.reward_gate"),
    ("training.engine",),
    ("training.rl",),
    ("training.methods",),
    ("tracking",),
    ("gate",),
    ("checking",),
    ("pipeline",),
    ("lineage",),
    ("services",),
    ("commands",),
    ("__main__", ""),
)
"""Folders and root modules of `alignflow`, lowest first: imports go down, or stay on their floor."""
REGISTRIES = {"alignflow/recipe/methods.py"}
"""Modules that name what lies above them in strings, to be imported when it is asked for."""


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
    library = [path for path in modules("alignflow") if path.parent.name != "commands"]
    assert offenders(library, "flows", "tasks") == []


def floor_of(module: str) -> int:
    """Floor of a module of `alignflow`: that of the longest name in FLOORS that it lies in."""
    inside = module.removeprefix("alignflow").removeprefix(".")
    found = [
        (len(name), floor)
        for floor, names in enumerate(FLOORS)
        for name in names
        if inside == name or (name and inside.startswith(f"{name}."))
    ]
    assert found, f"{module} has no floor: give it one in FLOORS"
    return max(found)[1]


def named_in_strings(path: Path) -> Iterator[str]:
    """Modules of ours that a file names in strings, such as `alignflow.data.prepare:run`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if re.fullmatch(r"alignflow(\.\w+)+", name) and is_module(name):
                yield name


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, also inside functions; names of a package are resolved."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {
                name if is_module(name := f"{node.module}.{alias.name}") else node.module
                for alias in node.names
            }
    return {name for name in found if name.split(".")[0] == "alignflow"}


def test_imports_go_down_the_floors_only() -> None:
    climbs = []
    for path in modules("alignflow"):
        place = path.relative_to(ROOT)
        own = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
        named = set() if place.as_posix() in REGISTRIES else set(named_in_strings(path))
        climbs += [
            f"{place} imports {name}"
            for name in imported_modules(path) | named
            if floor_of(name) > floor_of(own)
        ]
    assert climbs == []


def test_the_root_holds_only_what_everything_uses() -> None:
    assert sorted(path.name for path in (ROOT / "alignflow").glob("*.py")) == [
        "__init__.py",
        "__main__.py",
        "errors.py",
        "faults.py",
        "files.py",
        "settings.py",
    ]


def test_only_tracking_imports_mlflow() -> None:
    library = [path for path in modules("alignflow") if path.parent.name != "tracking"]
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
        siblings = {f"alignflow.training.methods.{stage}" for stage in stages - {path.stem}}
        assert not siblings & set(imports(path)), path


@pytest.mark.parametrize("folder", ["flows", "tasks"])
def test_no_file_has_the_name_of_an_importable_module(folder: str) -> None:
    for path in modules(folder):
        found = importlib.util.find_spec(path.stem) if path.stem != "__init__" else None
        assert found is None or found.origin is None, path  # a folder of tests has no origin


@pytest.mark.parametrize("module", CORE)
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
