"""The canonical columns as they stand, with messages as lists, as texts, or as the JSON of lists."""

from __future__ import annotations

from collections.abc import Callable

from alignflow.data.forms.form import CONTEXT, Form, Row, parsed

_SCORES = ("score", "rating", "overall_score", "scores", "ratings", "rank", "ranks", "ranking")


def _only(*names: str) -> Callable[[Row], list[Row]]:
    """Conversion to these columns, without others that could be read as well."""
    read = (*names, *CONTEXT)
    return lambda row: parsed({name: row[name] for name in read if name in row})


SPOKEN = (
    Form("messages", ("messages",), CONTEXT, _only("messages")),
    Form("prompt-completion", ("prompt", "completion"), CONTEXT, _only("prompt", "completion")),
)
TEXTS = (Form("text", ("text",)),)
PAIRS = (Form("pairs", ("chosen", "rejected"), ("prompt", *CONTEXT), parsed),)
RANKED = (Form("ranked", ("prompt", "responses|completions"), (*CONTEXT, *_SCORES), parsed),)
RATINGS = (Form("ratings", ("prompt", "completion", "label"), CONTEXT, parsed),)
PROMPTS = (Form("prompt", ("prompt",), ("target", *CONTEXT), _only("prompt", "target")),)
JUDGED = (
    Form("prompt-target", ("prompt", "target"), CONTEXT, _only("prompt", "target")),
    Form("messages-target", ("messages", "target"), CONTEXT, _only("messages", "target")),
)
