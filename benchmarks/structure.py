"""How the tree stands: its root, imports that climb or circle, long functions, what a method costs.

    python benchmarks/structure.py                       this tree
    python benchmarks/structure.py --ref dd10e27         another commit beside it
    python benchmarks/structure.py --methods simpo rft   code files that name each of these
    python benchmarks/structure.py --range A..B          code files that these commits touched
    python benchmarks/structure.py --time                seconds of both test tiers too
    python benchmarks/structure.py --picture             writes docs/architecture.svg
    python benchmarks/structure.py --picture --check     fails unless that is up to date

Floors are those of `tests/test_repository.py`. A commit without such a table is judged by today's:
git says where its files are now; imports of files that are nowhere now are left out and counted.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("alignflow", "tasks", "flows")
TABLES = Path("tests", "test_repository.py")
PICTURE = ROOT / "docs" / "architecture.svg"
LONG_LINES = 50
LONGEST = 5


class Arrow(NamedTuple):
    """One module of `alignflow` imports another, or names it in a string."""

    importer: str
    imported: str


class Floors(NamedTuple):
    """The order of folders, as `tests/test_repository.py` states it."""

    floors: tuple[tuple[str, ...], ...]
    registries: frozenset[str]

    def place(self, module: str) -> str | None:
        """Folder or root module of the table that `module` lies in: the longest name that fits."""
        inside = module.removeprefix("alignflow").removeprefix(".")
        names = [name for floor in self.floors for name in floor]
        fitting = [
            name for name in names if inside == name or (name and inside.startswith(f"{name}."))
        ]
        return max(fitting, key=len, default=None)

    def height(self, module: str) -> int | None:
        """Number of its floor, from the lowest; None where the table has no such module."""
        place = self.place(module)
        return next((n for n, names in enumerate(self.floors) if place in names), None)


def floors_of(root: Path) -> Floors | None:
    """The tables of a tree, read without importing the test; None where there are none."""
    tables: dict[str, Any] = {}
    for node in ast.parse((root / TABLES).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("FLOORS", "REGISTRIES"):
                tables[name] = ast.literal_eval(node.value)
    return Floors(tables["FLOORS"], frozenset(tables["REGISTRIES"])) if tables else None


def modules(root: Path, *packages: str) -> dict[str, Path]:
    """Module names of a tree and their files."""
    files = (path for package in packages for path in sorted((root / package).rglob("*.py")))
    return {module_name(path.relative_to(root)): path for path in files}


def module_name(path: Path) -> str:
    """`alignflow/data/rows.py` is `alignflow.data.rows`; a package has the name of its folder."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def arrows(root: Path, registries: frozenset[str]) -> set[Arrow]:
    """Every import inside `alignflow`, in functions and by string too; not a registry's strings."""
    files = modules(root, "alignflow")
    every: set[Arrow] = set()
    for importer, path in files.items():
        tree = ast.parse(path.read_text())
        names = set(imported_names(tree, files))
        if path.relative_to(root).as_posix() not in registries:
            names |= set(names_in_strings(tree))
        every |= {Arrow(importer, name) for name in names if name in files and name != importer}
    return every


def imported_names(tree: ast.AST, files: Mapping[str, Path]) -> Iterator[str]:
    """What a file imports; a name that is a module counts as that and not as its package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in files else node.module for name in inner)


def names_in_strings(tree: ast.AST) -> Iterator[str]:
    """Names that may be modules in strings, such as `alignflow.data.prepare:run`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.partition(":")[0]
            if re.fullmatch(r"alignflow(\.\w+)+", name):
                yield name


def climbs(every: set[Arrow], floors: Floors, now: Mapping[str, str]) -> tuple[list[Arrow], int]:
    """Imports that go up, and how many were not judged as one end has no place today.

    Args:
        every: Imports of a tree.
        floors: The order they are judged by.
        now: Module of that tree to what it is in the tree that `floors` is of.
    """
    up, unknown = [], 0
    for arrow in sorted(every):
        ends = (now.get(arrow.importer), now.get(arrow.imported))
        low, high = (floors.height(end) if end else None for end in ends)
        if low is None or high is None:
            unknown += 1
        elif high > low:
            up.append(arrow)
    return up, unknown


def cycles(every: set[Arrow]) -> list[list[str]]:
    """Groups of folders and root modules of `alignflow` that all import each other, by detours too."""
    rooms = {room(name) for arrow in every for name in arrow}
    reach = {name: {room(b) for a, b in every if room(a) == name != room(b)} for name in rooms}
    for middle in rooms:
        for start in rooms:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in rooms
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def room(module: str) -> str:
    """Folder or root module of `alignflow` that a module is in."""
    return module.split(".")[1] if "." in module else "alignflow"


def functions(root: Path) -> list[tuple[int, str, str]]:
    """Lines, name and file of every function, the longest first."""
    spans = []
    for path in modules(root, *PACKAGES).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                spans.append((lines, node.name, path.relative_to(root).as_posix()))
    return sorted(spans, key=lambda span: (-span[0], span[1], span[2]))


def naming(root: Path, method: str) -> list[str]:
    """Files whose code, docstrings left out, names a method."""
    return [
        path.relative_to(root).as_posix()
        for path in modules(root, *PACKAGES).values()
        if any(re.search(rf"(?i)(?<![a-z]){method}", w) for w in words(ast.parse(path.read_text())))
    ]


def words(tree: ast.AST) -> Iterator[str]:
    """Names and strings of code; a docstring is neither."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        for field in ("id", "attr", "name", "arg", "module"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def touched(commits: str) -> list[str]:
    """Code files that a range of commits changed or added."""
    return git("diff", "--name-only", "-M", commits, "--", *(f"{p}/*.py" for p in PACKAGES))


def git(*arguments: str) -> list[str]:
    """Lines that a git command prints."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def counts(
    root: Path, methods: list[str], now: Mapping[str, str], floors: Floors
) -> dict[str, str]:
    """Every count of a tree, as text."""
    own = floors_of(root)
    registries = (
        own.registries
        if own
        else frozenset(
            path
            for path in (f"{name.replace('.', '/')}.py" for name in now)
            if f"{now[module_name(Path(path))].replace('.', '/')}.py" in floors.registries
        )
    )
    every = arrows(root, registries)
    up, unknown = climbs(every, floors, now)
    circles = cycles(every)
    spans = functions(root)
    files = modules(root, *PACKAGES).values()
    return {
        "files at the root of alignflow/": str(len(list((root / "alignflow").glob("*.py")))),
        "folders and root modules": str(len({room(name) for name in modules(root, "alignflow")})),
        "imports between modules": str(len(every)),
        "upward imports": str(len(up)) + (f" ({unknown} not judged)" if unknown else ""),
        "cycles between folders": ", ".join(f"{len(c)} folders" for c in circles) or "none",
        "lines of " + ", ".join(PACKAGES): f"{sum(lines_of(path) for path in files):,}",
        "functions": f"{len(spans):,}",
        f"functions over {LONG_LINES} lines": str(sum(span[0] > LONG_LINES for span in spans)),
        **{f"longest function {n + 1}": f"{s[0]} {s[1]}" for n, s in enumerate(spans[:LONGEST])},
        **{f"files that name {name}": str(len(naming(root, name))) for name in methods},
    }


def lines_of(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text().splitlines())


def moved(ref: str) -> dict[str, str]:
    """Module of another commit to its name today, for files that are still there or were moved."""
    names = {
        module_name(Path(line)) for line in git("ls-tree", "-r", "--name-only", ref, "alignflow")
    }
    here = modules(ROOT, "alignflow")
    now = {name: name for name in names if name in here}
    for line in git("diff", "--name-status", "--diff-filter=R", "-M30", ref, "--", "alignflow"):
        _, old, new = line.split("\t")
        now[module_name(Path(old))] = module_name(Path(new))
    return now


def seconds_of(target: str) -> str:
    """How long a target of the Makefile takes, or how it ends."""
    started = time.monotonic()
    code = subprocess.run(["make", target], cwd=ROOT, capture_output=True).returncode
    return f"{time.monotonic() - started:.0f} s" + (f", ended with {code}" if code else "")


def print_columns(columns: Mapping[str, Mapping[str, str]]) -> None:
    """One row a count, one column a tree."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [("", *columns), *((n, *(c.get(n, "") for c in columns.values())) for n in names)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def main() -> None:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ref", metavar="COMMIT", help="measure this commit beside the tree")
    parser.add_argument("--methods", nargs="*", default=["simpo"], help="count files naming these")
    parser.add_argument("--range", metavar="A..B", help="list code files that commits touched")
    parser.add_argument("--time", action="store_true", help="run both test tiers")
    parser.add_argument("--picture", action="store_true", help=f"write {PICTURE.name}")
    parser.add_argument("--check", action="store_true", help="with --picture: only compare")
    options = parser.parse_args()
    floors = floors_of(ROOT)
    assert floors is not None, f"{TABLES} has no FLOORS"
    if options.picture:
        sys.exit(picture(floors, only_check=options.check))
    if options.range:
        files = touched(options.range)
        print("\n".join([*files, f"{len(files)} files"]))
        return
    columns = {}
    if options.ref:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", options.ref], check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            before = counts(Path(folder), options.methods, moved(options.ref), floors)
            columns[options.ref] = before
    names = modules(ROOT, "alignflow")
    columns["now"] = counts(ROOT, options.methods, dict(zip(names, names, strict=True)), floors)
    if options.time:
        columns["now"] |= {f"make {name}": seconds_of(name) for name in ("test-quick", "test")}
    print_columns(columns)


def picture(floors: Floors, *, only_check: bool) -> int:
    """Writes the picture of this tree, or says whether the one there is still right; exit code."""
    from structure_picture import draw

    svg = draw(floors, arrows(ROOT, floors.registries), modules(ROOT, "alignflow"))
    if not only_check:
        PICTURE.write_text(svg)
        return 0
    if PICTURE.is_file() and PICTURE.read_text() == svg:
        return 0
    print(f"{PICTURE.relative_to(ROOT)} is not what the imports are now: `make fix` draws it again")
    return 1


if __name__ == "__main__":
    main()
