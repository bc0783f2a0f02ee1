"""What a stranger's rows are: the part of the data that they can be, their form, their columns. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from alignflow.data.columns import columns_that_fit, renamed
from alignflow.data.demonstrations import Prompt, prompt_to_answer
from alignflow.data.forms import form_names, recognised
from alignflow.data.parts import Formed, formed
from alignflow.data.rejected import BadRow

Row = Mapping[str, Any]
PARTS_TRIED = ("preferences", "ratings", "evaluation", "sft", "prompts", "pretrain")
"""The most special first: a row of each is mostly one of those after it too."""
TARGETED = ("prompt-target", "messages-target")
MOST = 0.5
"""Share of rows that must be of a part for the source to be of it."""
_TEMPLATED = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|### ?(Response|Answer|Assistant)"
    r"|(^|\n)(Assistant|AI|GPT|Answer): ?"
)


class Guess(NamedTuple):
    """What the rows of a source are taken for."""

    part: str
    form: str | None
    """To be named in the recipe, where the columns tell several."""
    columns: dict[str, str]
    """To be mapped in the recipe, `{our name: name in the source}`."""


def guessed(rows: Sequence[Row]) -> Guess | None:
    """The part that most rows can be of, as they stand or under other names of their columns."""
    for form in (None, *form_names()):
        for part in PARTS_TRIED:
            if _share(part, rows, form) >= MOST:
                return Guess(part, form, {})
        if form is None and not _fit_several(rows):
            break
    named = {name for row in rows[:20] for name in row}
    first = next((row for row in rows if all(row.get(name) is not None for name in named)), None)
    first = first or (rows[0] if rows else {})
    for part in ("preferences", "ratings", "sft", "pretrain"):
        columns = columns_that_fit(first, part)
        if columns and _share(part, [renamed(row, columns) for row in rows], None) >= MOST:
            return Guess(part, None, columns)
    return None


def _share(part: str, rows: Sequence[Row], form: str | None) -> float:
    said = [one for row in rows if (one := _formed(part, row, form)) is not None]
    return sum(_is_of(part, one) for one in said) / max(len(rows), 1)


def _formed(part: str, row: Row, form: str | None) -> Formed | None:
    try:
        return formed(part, dict(row) | {"split": None}, form)
    except BadRow:
        return None


def _is_of(part: str, said: Formed) -> bool:
    if part == "evaluation":
        return said.form in TARGETED
    if part == "sft":
        return said.form != "text" or bool(_TEMPLATED.search(said.text or ""))
    return True


def _fit_several(rows: Sequence[Row]) -> bool:
    """Whether columns alone do not tell what the rows are."""
    reasons: Counter[str] = Counter()
    for row in rows:
        for part in PARTS_TRIED:
            try:
                formed(part, dict(row))
            except BadRow as bad:
                reasons[bad.reason] += 1
    return reasons["two_forms"] > 0


def judged_prompts(rows: Iterable[Row], form: str | None) -> list[Prompt]:
    """Rows as prompts with what answers them, those left out that are none."""
    prompts = []
    for row in rows:
        try:
            told = recognised(dict(row), "judged prompt", form).rows[0]
            prompts.append(prompt_to_answer(told, wants_target=True))
        except BadRow:
            continue
    return prompts
