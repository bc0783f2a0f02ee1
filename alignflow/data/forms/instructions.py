"""Rows of an instruction and its output: Alpaca's columns, Dolly's, and ms-swift's query and response."""

from __future__ import annotations

from typing import Any

from alignflow.data.calls import from_json
from alignflow.data.forms.form import (
    CONTEXT,
    Form,
    Row,
    context_of,
    liked_in,
    listed,
    messages_in,
    one_message,
    text_of,
)
from alignflow.data.rejected import BadRow, kind

_ALPACA = ("input", "history", *CONTEXT, "text")
"""`text` of the original Alpaca rows is the same once more, in its own template."""
_SWIFT = ("history", *CONTEXT)


def _prompt(row: Row, question: str, further: str | None = None) -> list[Any]:
    """The turns before the answer: those of `history`, then the question and what it is about."""
    asked = text_of(row, question)
    if further and row.get(further) is not None:
        asked = "\n".join(text for text in (asked, text_of(row, further)) if text.strip())
    return [*_history(row), {"role": "user", "content": asked}]


def _history(row: Row) -> list[Any]:
    """Earlier turns, from pairs of question and answer."""
    pairs = from_json(row.get("history")) or []
    if not isinstance(pairs, list):
        raise BadRow(f"type:history:{kind(pairs)}", f"history is {kind(pairs)}, not pairs")
    messages = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(
                f"type:history:{kind(pair)}", f"history has {pair!r:.60}, wanted pairs of texts"
            )
        asked, answered = pair
        messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    return messages


def _demonstration(question: str, answer: str, further: str | None = None) -> Any:
    def convert(row: Row) -> list[Row]:
        answered = {"role": "assistant", "content": row[answer]}
        return [{"messages": [*_prompt(row, question, further), answered], **context_of(row)}]

    return convert


def _asked(row: Row) -> list[Row]:
    return [{"prompt": _prompt(row, "instruction", "input"), **context_of(row)}]


def _pair(question: str, chosen: str, rejected: str, further: str | None = None) -> Any:
    def convert(row: Row) -> list[Row]:
        told = {"chosen": one_message(row[chosen]), "rejected": one_message(row[rejected])}
        return [{"prompt": _prompt(row, question, further), **told, **context_of(row)}]

    return convert


def _rating(question: str, answer: str, further: str | None = None) -> Any:
    def convert(row: Row) -> list[Row]:
        told = {"completion": row[answer], "label": liked_in(row)}
        return [{"prompt": _prompt(row, question, further), **told, **context_of(row)}]

    return convert


def _instead(row: Row) -> list[Row]:
    """A conversation, and what is said in place of its last response, or of all of it."""
    messages = listed(row, "messages")
    if row.get("rejected_messages") is not None:
        return [
            {
                "chosen": messages,
                "rejected": listed(row, "rejected_messages"),
                **context_of(row),
            }
        ]
    rejected = messages_in(row["rejected_response"])
    last = [messages[-1]]
    return [{"prompt": messages[:-1], "chosen": last, **_worse(rejected), **context_of(row)}]


def _worse(rejected: Any) -> Row:
    if isinstance(rejected, str):
        rejected = [{"role": "assistant", "content": rejected}]
    return {"rejected": rejected}


INSTRUCTIONS = (
    Form(
        "alpaca",
        ("instruction", "output"),
        _ALPACA,
        _demonstration("instruction", "output", "input"),
    ),
    Form(
        "dolly",
        ("instruction", "response"),
        ("context", "category", *CONTEXT),
        _demonstration("instruction", "response", "context"),
    ),
    Form("swift", ("query", "response"), _SWIFT, _demonstration("query", "response")),
)
INSTRUCTION_PROMPTS = (Form("alpaca", ("instruction",), _ALPACA, _asked),)
INSTRUCTION_PAIRS = (
    Form(
        "alpaca",
        ("instruction", "chosen", "rejected"),
        _ALPACA,
        _pair("instruction", "chosen", "rejected", "input"),
    ),
    Form(
        "swift",
        ("query", "response", "rejected_response"),
        _SWIFT,
        _pair("query", "response", "rejected_response"),
    ),
    Form("swift", ("messages", "rejected_response|rejected_messages"), CONTEXT, _instead),
)
INSTRUCTION_RATINGS = (
    Form(
        "alpaca",
        ("instruction", "output", "kto_tag|label"),
        _ALPACA,
        _rating("instruction", "output", "input"),
    ),
    Form("swift", ("query", "response", "label"), _SWIFT, _rating("query", "response")),
)
