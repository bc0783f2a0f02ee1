"""Passages in a prompt: fenced, so that what they say is read and never obeyed or taken for a turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FENCE = re.compile(r"<(?=\s*/?\s*document\b)", re.IGNORECASE)


def with_passages(
    question: str, passages: Sequence[str], instruction: str, special: Sequence[str] = ()
) -> str:
    """What a user says who gives passages: instruction, passages, question; without any, it alone.

    Each stands between `<document id="1">` and `</document>`, which it cannot close.

    Args:
        question: As the user asks it.
        passages: Their texts.
        instruction: Before the passages; an empty one leaves them alone.
        special: Tokens that end a turn or begin one, which lose their meaning in a passage.
    """
    if not passages:
        return question
    fenced = (
        f'<document id="{number}">\n{_harmless(text.strip(), special)}\n</document>'
        for number, text in enumerate(passages, 1)
    )
    return "\n".join(part for part in (instruction, *fenced, question) if part)


def _harmless(text: str, special: Sequence[str]) -> str:
    for token in sorted((token for token in special if len(token) > 1), key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return _FENCE.sub("&lt;", text)
