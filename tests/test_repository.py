"""What holds of the tree as a whole: who may import whom, names, and what ships."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from alignflow.recipe import METHODS

ROOT = Path(__file__).parent.parent
CORE = [
    *("alignflow", "alignflow.recipe", "alignflow.errors", "alignflow.files", "alignflow.settings"),
    *("alignflow.stages.artifacts", "alignflow.stages.spec", "alignflow.pipeline.plan"),
    # these import Prefect
    *(pytest.param(f"flows.{name}", marks=pytest.mark.slow) for name in ("finetune", "retrain")),
]
FLOORS = (
    ("errors", "files", "settings", "faults", "machine"),
    ("sql",),
    ("builtin",),
    ("recipe",),
    ("stages",),
    ("data",),
    ("models",),
    ("ledger",),
    ("evaluation",),
    ("retrieval",),
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
    ("drafting",),
    ("pipeline",),
    ("exporting",),
    ("lineage", "deciding"),
    ("services",),
    ("commands",),
    ("__main__", ""),
)
"""Folders and root modules of `alignflow`, lowest first: imports go down, or stay on their floor."""
REGISTRIES = {"alignflow/recipe/methods.py"}
"""Modules that name what lies above them in strings, to be imported when it is asked for."""
LOOKED_UP = {"alignflow.commands", "alignflow.evaluation.metrics", "alignflow.training.methods"}
"""Folders whose modules a table or an entry point names, so that a face would have no reader."""
BEHIND_FACES = {
    *(("benchmarks/lineage.py", f"alignflow.ledger.{name}") for name in ("schema", "store")),
    ("benchmarks/lineage.py", "alignflow.builtin.freight.rebuild_preferences"),
}
"""Who looks behind a face, and at what: tables read to check the ledger, a script run by parts."""


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def faces() -> dict[str, Path]:
    """Folders of `alignflow` by dotted name, and the file that says what each gives to others."""
    folders = [path.parent for path in modules("alignflow") if path.name == "__init__.py"]
    return {
        ".".join(folder.relative_to(ROOT).parts): lazy
        if (lazy := folder / "__init__.pyi").is_file()
        else folder / "__init__.py"
        for folder in folders
    }


def imported_names(path: Path) -> Iterator[tuple[str, ast.alias]]:
    """Modules of ours that a file imports from, and each name it takes."""
    own = ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = [own if node.level else "", node.module or ""]
            module = ".".join(filter(None, parts))
            if module.split(".")[0] == "alignflow":
                yield from ((module, alias) for alias in node.names)


def given(face: Path) -> dict[str, str]:
    """Names that a face gives to others, and the module that each is taken from."""
    return {a.name: module for module, a in imported_names(face) if a.asname == a.name}


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
    return {name for name in imports(path) if name.split(".")[0] == "alignflow"} | {
        name if is_module(name := f"{module}.{alias.name}") else module
        for module, alias in imported_names(path)
    }


def test_imports_go_down_the_floors_only() -> None:
    climbs = []
    for path in {*modules("alignflow"), *faces().values()}:
        place = path.relative_to(ROOT)
        own = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
        named = set() if place.as_posix() in REGISTRIES else set(named_in_strings(path))
        climbs += [
            f"{place} imports {name}"
            for name in imported_modules(path) | named
            if floor_of(name) > floor_of(own)
        ]
    assert climbs == []


def across_folders() -> Iterator[tuple[str, str, str]]:
    """Imports from another folder of `alignflow`: the file, the module and the name."""
    files = [path for folder in ("alignflow", "flows", "tasks") for path in modules(folder)]
    for path in {*files, *modules("benchmarks"), *faces().values()}:
        place = path.relative_to(ROOT)
        for module, alias in imported_names(path):
            folder = module if module in faces() else module.rpartition(".")[0]
            if not f"{place.parent.as_posix()}/".startswith(f"{folder.replace('.', '/')}/"):
                yield place.as_posix(), module, alias.name


def test_imports_from_another_folder_go_through_its_face() -> None:
    given_by = {folder: given(face) for folder, face in faces().items()}
    behind = []
    for place, module, name in across_folders():
        imported = f"{module}.{name}"
        if module in faces() and (name in given_by[module] or not is_module(imported)):
            continue
        module = imported if module in faces() else module
        folder = module.rpartition(".")[0]
        if folder not in {"alignflow", *LOOKED_UP} and (place, module) not in BEHIND_FACES:
            behind.append(f"{place} imports {imported}: give it in the face of {folder}")
    assert behind == []


def test_every_name_of_a_face_has_a_reader() -> None:
    read = {(module, name) for _, module, name in across_folders()}
    documented = set(re.findall(r"\baf\.(\w+)", (ROOT / "docs" / "python.md").read_text()))
    read |= {("alignflow", name) for name in documented}
    dead = {(folder, name) for folder, face in faces().items() for name in given(face)} - read
    assert dead == set()


def test_a_name_of_a_face_is_never_another_module_of_the_folder() -> None:
    for folder, face in faces().items():
        for name, module in given(face).items():
            assert module in (folder, f"{folder}.{name}") or not is_module(f"{folder}.{name}")


def test_a_face_gives_the_function_also_after_the_module_of_its_name_was_imported() -> None:
    code = "import alignflow.pipeline.run; from alignflow.pipeline import run; print(run.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "run", result.stderr


def test_the_root_holds_only_what_everything_uses() -> None:
    assert sorted(path.name for path in (ROOT / "alignflow").glob("*.py")) == [
        "__init__.py",
        "__main__.py",
        "errors.py",
        "faults.py",
        "files.py",
        "machine.py",
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


@pytest.mark.parametrize("module", [*CORE, ", ".join(faces())])
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
