"""`decide.json` and `decide.html`: the decision for programs, and one file for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.deciding.picture import matrix
from alignflow.deciding.terminal import COLUMNS, notes, rows
from alignflow.files import atomic_write_json, atomic_write_text
from alignflow.pipeline import page_of
from alignflow.stages import WITHOUT_ANSWERS

DECISION_FILE, PAGE_FILE = "decide.json", "decide.html"


def write_decision(folder: Path, decision: Mapping[str, Any]) -> None:
    """Writes both files, and both without texts of rows, for where `prefs erase` does not reach."""
    for place, content in (
        (folder, dict(decision)),
        (folder / WITHOUT_ANSWERS, {**decision, "samples": []}),
    ):
        atomic_write_json(place / DECISION_FILE, content)
        atomic_write_text(place / PAGE_FILE, render_decision(content))


def render_decision(decision: Mapping[str, Any]) -> str:
    """The page: picture, table, groups, and answers side by side with what was retrieved."""
    picture = matrix(decision["arms"], decision["recommended"], decision["currency"])
    return page_of(
        "decide.html.j2",
        folder=Path(__file__).parent,
        decision=decision,
        picture=picture,
        columns=COLUMNS,
        rows=list(rows(decision)),
        notes=[line for line in notes(decision) if line],
        groups=_groups(decision),
    )


def _groups(decision: Mapping[str, Any]) -> list[tuple[str, dict[str, float], str | None]]:
    """Each group's accuracies by arm, and what is recommended for it."""
    arms, verdicts = decision["arms"], decision["verdict"]["groups"]
    names = dict.fromkeys(name for row in arms.values() for name in row["groups"])
    return [
        (
            name,
            {arm: row["groups"].get(name, 0.0) for arm, row in arms.items()},
            verdicts[name]["recommended"] if name in verdicts else None,
        )
        for name in names
        if len(names) > 1
    ]


def figures_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of an arm's row."""
    return {n: v for n, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
