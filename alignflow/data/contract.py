"""What a chat template, training and generation agree on, found once and kept with the tokenizer.

    opens    what the generation prompt writes before a response
    closes   the token that ends a response, in training and in generation

Where a template knows reasoning, it also says what parts reasoning from the answer. The record stands
in `tokenizer_config.json`, so that it goes wherever the tokenizer goes. No torch, no transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

from alignflow.data.template import (
    PROBED_CALL,
    PROBED_TOOL,
    ChatTemplate,
    TemplateRejects,
    ending_of,
)
from alignflow.stages import Record

FIELD = "alignflow_response"
"""Of `tokenizer_config.json`."""
QUESTION, ANSWER, REASONING = "Alpha-question?", "Beta-answer.", "Gamma-reasoning."
_USER = {"role": "user", "content": QUESTION}
_ANSWER = {"role": "assistant", "content": ANSWER}
_THINKS = ("<think>", "</think>")


class ResponseContract(Record):
    """How responses begin and end, and where the answer stands in them."""

    opens: str = ""
    """What the template writes before a response."""
    closes: tuple[str, ...] = ()
    """Tokens that end a response; training ends it with the first."""
    document_end: str | None = None
    """Token that ends a text without a template."""
    reasoning_opens: str | None = None
    """What a response begins with where it begins with reasoning."""
    answer_follows: str | None = None
    """What stands between reasoning and answer; None where the template knows no reasoning."""
    begins_in_reasoning: bool = False
    """Whether the generation prompt opens reasoning, so that a response without `answer_follows` has
    no answer."""

    @classmethod
    def kept_with(cls, tokenizer: Any) -> Self | None:
        """The record that a tokenizer was saved with; None where it has none."""
        record = tokenizer.init_kwargs.get(FIELD)
        return None if record is None else cls.model_validate(record)

    def after(self, before: ResponseContract) -> Self:
        """The contract of a tokenizer whose end token was already made the closing one."""
        closes = tuple(dict.fromkeys([*self.closes, *before.closes]))
        return self.model_copy(update={"closes": closes, "document_end": before.document_end})

    def parted(self, text: str) -> tuple[str, str]:
        """Reasoning and answer of a response, special tokens written out."""
        if self.answer_follows is None:
            return "", text
        reasoning, mark, answer = text.rpartition(self.answer_follows)
        if mark:
            return reasoning, answer.lstrip()
        opening = self.reasoning_opens
        is_reasoning = opening is not None and text.lstrip().startswith(opening)
        return (text, "") if self.begins_in_reasoning or is_reasoning else ("", text)


def contract_of(
    template: ChatTemplate, special: Sequence[str], eos: str | None
) -> ResponseContract:
    """What a template says of responses, from how it renders probes.

    Args:
        template: In force.
        special: The tokenizer's special tokens; only one of them can end a response.
        eos: The tokenizer's own end token. It ends texts without a template, a response where the
            template has nothing that could, and always generation.

    Raises:
        TemplateRejects: It rejects a question and its answer, or leaves out one of them.
    """
    prompt = template.render([_USER], add_generation_prompt=True)
    whole = template.render([_USER, _ANSWER])
    for said in (QUESTION, ANSWER):
        if said not in whole:
            raise TemplateRejects(f"it leaves out the text of a message; it writes {whole[:200]!r}")
    bare = _shared_start(template.render([_USER]), prompt)
    ends = [_closer(whole, ANSWER, special), eos, _call_closer(template, special)]
    closes = tuple(dict.fromkeys(end for end in ends if end))
    return ResponseContract(
        opens=prompt[bare:],
        closes=closes,
        document_end=eos,
        **_reasoning(template, prompt, whole),
    )


def _closer(text: str, answer: str, special: Sequence[str]) -> str | None:
    """The last of the special tokens that the text goes on with after the answer."""
    return _last(ending_of(special).match(text.rpartition(answer)[2].lstrip()), special)


def _last(ending: re.Match[str] | None, special: Sequence[str]) -> str | None:
    ends = ending.group(1) if ending else ""
    return max((token for token in special if ends.endswith(token)), key=len, default=None)


def _call_closer(template: ChatTemplate, special: Sequence[str]) -> str | None:
    """The token that ends a response which calls a tool; some templates have one of its own."""
    try:
        text = template.render(
            [_USER, {"role": "assistant", "content": "", "tool_calls": [PROBED_CALL]}],
            tools=[PROBED_TOOL],
        )
    except TemplateRejects:
        return None
    return _last(ending_of(special).search(text.rpartition("Kappa")[2]), special)


def _reasoning(template: ChatTemplate, prompt: str, whole: str) -> dict[str, Any]:
    """Fields of the contract about reasoning."""
    kinds = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), REASONING)
    try:
        text = template.render([_USER, _ANSWER | kinds])
    except TemplateRejects:
        text = ""
    before, written, rest = text.partition(REASONING)
    between, answered, _ = rest.partition(ANSWER)
    if not (written and answered):
        opens = prompt.rstrip().endswith(_THINKS[0])
        known = opens or _THINKS[1] in template.source
        return {
            "reasoning_opens": _THINKS[0] if known else None,
            "answer_follows": _THINKS[1] if known else None,
            "begins_in_reasoning": opens,
        }
    head = whole.removeprefix(prompt).partition(ANSWER)[0] if whole.startswith(prompt) else ""
    shared = between[len(between) - _shared_start(between[::-1], head[::-1]) :].strip()
    opening = before[_shared_start(before, prompt) :].strip()
    return {
        "reasoning_opens": opening or None,
        "answer_follows": shared or between.strip(),
        "begins_in_reasoning": not opening and before.startswith(prompt),
    }


def _shared_start(one: str, other: str) -> int:
    """Characters with which both texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
