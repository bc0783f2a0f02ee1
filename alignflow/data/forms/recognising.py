"""Which form a row has: told by its columns, or by the recipe. No torch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from alignflow.data.demonstrations import columns_of
from alignflow.data.forms.conversations import (
    CONVERSATION_PAIRS,
    CONVERSATION_RATINGS,
    CONVERSATIONS,
)
from alignflow.data.forms.exports import EXPORTED_DEMONSTRATIONS, EXPORTED_PAIRS, EXPORTED_RATINGS
from alignflow.data.forms.form import Form, Row
from alignflow.data.forms.instructions import (
    INSTRUCTION_PAIRS,
    INSTRUCTION_PROMPTS,
    INSTRUCTION_RATINGS,
    INSTRUCTIONS,
)
from alignflow.data.forms.plain import JUDGED, PAIRS, PROMPTS, RANKED, RATINGS, SPOKEN, TEXTS
from alignflow.data.forms.published import PUBLISHED_DEMONSTRATIONS, PUBLISHED_PAIRS
from alignflow.data.rejected import BadRow
from alignflow.data.turns import MEDIA, TEXT_ALONE

DEMONSTRATIONS = (
    *SPOKEN,
    *CONVERSATIONS,
    *INSTRUCTIONS,
    *PUBLISHED_DEMONSTRATIONS,
    *EXPORTED_DEMONSTRATIONS,
)
ALL_PAIRS = (
    *PAIRS,
    *CONVERSATION_PAIRS,
    *INSTRUCTION_PAIRS,
    *PUBLISHED_PAIRS,
    *EXPORTED_PAIRS,
)
ALL_RATINGS = (*RATINGS, *CONVERSATION_RATINGS, *INSTRUCTION_RATINGS, *EXPORTED_RATINGS)
FORMS: dict[str, tuple[tuple[Form, ...], ...]] = {
    "text": (TEXTS,),
    "demonstration": (DEMONSTRATIONS, TEXTS),
    "pair": (ALL_PAIRS, RANKED),
    "rating": (ALL_RATINGS,),
    "prompt": ((*PROMPTS, *PUBLISHED_DEMONSTRATIONS), DEMONSTRATIONS, INSTRUCTION_PROMPTS),
    "judged prompt": (JUDGED, DEMONSTRATIONS),
    "feedback": (ALL_PAIRS, RANKED, ALL_RATINGS),
}
"""What a row is wanted as, to the forms that it may have: a later group counts where none of an
earlier one fits. Of one group a row must fit one form, or one whose columns include the others'."""
_OWN = {
    *("id", "split", "group", "quality", "replayed"),
    *("annotator", "annotator_id", "time", "timestamp", "created_at"),
    *("source", "model", "model_name"),
}
"""Columns that are read apart from the form of a row, or say who said so, or are ours."""
_MEANING = {
    *("system", "system_prompt", "instruction", "input", "context", "history"),
    *("tools", "functions", "tool_calls", "function_call"),
    *("weight", "weights", "loss"),
}
"""Columns that change what a row means; one that is not read is no row to train on."""


class Recognised(NamedTuple):
    """What a row was recognised as."""

    form: str | None
    """None where it has no form; then `rows` is the row itself."""
    rows: list[Row]
    """Canonical, at least one."""
    unread: tuple[str, ...] = ()
    """Columns that hold something and were not read."""


class _Fit(NamedTuple):
    form: Form | None
    others: tuple[str, ...] = ()
    """Names of further forms that fit as well."""
    unread: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    """Columns of images and the like."""
    changing: tuple[str, ...] = ()
    """Those unread that change what a row means."""


def form_names() -> list[str]:
    """Names that a recipe may give."""
    return sorted({form.name for groups in FORMS.values() for group in groups for form in group})


def recognised(row: Row, wanted: str, form: str | None = None) -> Recognised:
    """A row brought to canonical columns. `form` is the recipe's word where the columns tell several.

    Raises:
        BadRow: It fits two forms, or breaks the rules of its own, or has what its form cannot use.
    """
    names = tuple(name for name, value in row.items() if value is not None)
    fit = _fit(names, wanted, form)
    for name in fit.media:
        if row[name]:
            raise BadRow(f"unsupported:{name}", f"has {name}; {TEXT_ALONE}")
    if fit.form is None and form is not None:
        raise BadRow("missing_columns", f"has {columns_of(row)}, and not the columns of {form}")
    if fit.form is None:
        return Recognised(None, [row])
    if fit.others:
        both = ", ".join((fit.form.name, *fit.others))
        raise BadRow(
            "two_forms",
            f"fits the forms {both}. Say which in the data source (`form: {fit.form.name}`, or "
            f"`prefs add --form {fit.form.name}`)",
        )
    for name in fit.changing:
        if row[name] not in ("", [], {}):
            raise BadRow(
                "unread_column",
                f"has {name}, which the form {fit.form.name} does not read, and which changes what "
                "the row means. Name another form or map it (`form`, `columns`), or leave it out",
            )
    return Recognised(fit.form.name, fit.form.convert(row), fit.unread)


@lru_cache(maxsize=4096)
def _fit(names: tuple[Any, ...], wanted: str, named: str | None) -> _Fit:
    present = set(names)
    media = tuple(name for name in MEDIA if name in present)
    for group in FORMS[wanted]:
        told = {
            form: columns
            for form in group
            if named in (None, form.name) and (columns := _told(form, present)) is not None
        }
        best = [
            form
            for form, columns in told.items()
            if not any(columns < others for others in told.values())
        ]
        if best:
            form = best[0]
            read = {*told[form], *form.reads, *_OWN}
            rest = set() if "*" in form.reads else present - read
            unread = tuple(sorted(name for name in rest if isinstance(name, str)))
            changing = tuple(name for name in unread if name in _MEANING)
            return _Fit(form, tuple(other.name for other in best[1:]), unread, media, changing)
    return _Fit(None, media=media)


def _told(form: Form, present: set[Any]) -> set[str] | None:
    """The columns by which a row of the form is told, of those that it has."""
    columns: set[str] = set()
    for choice in form.told_by:
        found = {name for name in choice.split("|") if name in present}
        if choice.startswith("*"):
            found = {name for name in present if str(name).endswith(choice[1:])}
        if not found:
            return None
        columns |= found
    return columns
