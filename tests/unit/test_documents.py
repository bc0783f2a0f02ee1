"""What the documents name is there: links, and the functions of the walks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
WALKS = (ROOT / "docs/architecture.md").read_text().partition("## Three walks")[2]


def defined(file: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign):  # `run = SFT.run`
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{n.name}" for n in inner if isinstance(n, ast.FunctionDef)}
    return names


DOTTED = sorted(set(re.findall(r"`(\w+\.\w+\.[\w.]+)`", WALKS)))
"""Such as `ledger.snapshots.freeze`: two dots at least, so a file and a name in it."""


@pytest.mark.parametrize("name", DOTTED)
def test_the_functions_of_the_walks_are_where_they_are_said_to_be(name: str) -> None:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        for start in ("alignflow", ""):
            file = Path(ROOT, start, *parts[:end]).with_suffix(".py")
            if file.is_file():
                assert ".".join(parts[end:]) in defined(file), f"{file} has no {name}"
                return
    pytest.fail(f"no file holds {name}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", document.read_text())
    missing = [to for to in links if "://" not in to and not (document.parent / to).exists()]
    assert missing == []
