"""Rows that are conversations: ShareGPT's and LLaMA-Factory's columns, OpenAI's preferences."""

from __future__ import annotations

from alignflow.data.calls import from_json
from alignflow.data.forms.form import CONTEXT, Form, Row, context_of, liked_in, listed, one_message
from alignflow.data.rejected import BadRow, kind


def _share_gpt(row: Row) -> list[Row]:
    return [{"messages": listed(row, "conversations"), **context_of(row)}]


def _two_answers(row: Row) -> list[Row]:
    """A conversation up to the question, and the two messages that may answer it."""
    told = {name: one_message(row[name]) for name in ("chosen", "rejected")}
    return [{"prompt": listed(row, "conversations"), **told, **context_of(row)}]


def _rated(name: str) -> Form:
    def convert(row: Row) -> list[Row]:
        messages = listed(row, name)
        if len(messages) < 2:
            raise BadRow(
                "missing:prompt", f"{name} has one message, wanted a prompt and a response"
            )
        said = {"prompt": messages[:-1], "completion": [messages[-1]], "label": liked_in(row)}
        return [{**said, **context_of(row)}]

    return Form("rated-conversation", (name, "label|kto_tag"), CONTEXT, convert)


def _open_ai(row: Row) -> list[Row]:
    """`input` with messages and tools, and two outputs that are messages."""
    asked = from_json(row["input"])
    if not isinstance(asked, dict) or asked.get("messages") is None:
        raise BadRow(f"type:input:{kind(asked)}", "input has no messages")
    return [
        {
            "prompt": listed(asked, "messages"),
            "chosen": one_message(row["preferred_output"]),
            "rejected": one_message(row["non_preferred_output"]),
            "tools": asked.get("tools"),
        }
    ]


CONVERSATIONS = (Form("sharegpt", ("conversations",), CONTEXT, _share_gpt),)
CONVERSATION_PAIRS = (
    Form("sharegpt", ("conversations", "chosen", "rejected"), CONTEXT, _two_answers),
    Form("openai", ("input", "preferred_output", "non_preferred_output"), (), _open_ai),
)
CONVERSATION_RATINGS = (_rated("messages"), _rated("conversations"))
