"""A chat template taken apart into turns, where it writes each turn the same wherever it stands.

What is found is put together again for several conversations and must be what the template writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from alignflow.data import ChatTemplate, Message, TemplateRejects

SYSTEM, ASKED, ANSWERED, AGAIN = "Alpha system.", "Beta question?", "Gamma answer.", "Delta again?"
_USER: Message = {"role": "user", "content": ASKED}
_ANSWER: Message = {"role": "assistant", "content": ANSWERED}
_AGAIN: Message = {"role": "user", "content": AGAIN}
_SYSTEM: Message = {"role": "system", "content": SYSTEM}


class Frame(NamedTuple):
    """What stands around a message."""

    before: str
    after: str


class Turns(NamedTuple):
    """How conversations are written."""

    begin: str
    """Once, before everything."""
    default: str
    """In the place of a system message's turn, where there is none."""
    user: Frame
    assistant: Frame
    opens: str
    """Before a response."""
    system: Frame | None
    """None where a system message has no turn of its own."""
    joined: str | None
    """What stands between a system message and the first question, where one turn has both."""

    @property
    def takes_system(self) -> bool:
        """Whether a system message is written at all."""
        return self.system is not None or self.joined is not None

    def without(self, added: str) -> Turns:
        """The same without the token that the tokenizer puts before every text by itself."""
        begin = self.begin.removeprefix(added)
        if begin != self.begin or self.system is None:
            return self._replace(begin=begin)
        system = Frame(self.system.before.removeprefix(added), self.system.after)
        return self._replace(default=self.default.removeprefix(added), system=system)

    def written(self, messages: Sequence[Message]) -> str:
        """Text of a conversation that a response is to follow."""
        frames = {"user": self.user, "assistant": self.assistant, "system": self.system}
        told = messages[0]["role"] == "system"
        text, waiting = self.begin + ("" if told else self.default), ""
        for message in messages:
            frame = frames[message["role"]]
            if frame is None:
                waiting = message["content"] + (self.joined or "")
                continue
            text, waiting = f"{text}{frame.before}{waiting}{message['content']}{frame.after}", ""
        return text + self.opens


def turns_of(template: ChatTemplate, closes: Sequence[str]) -> Turns | str:
    """The template in turns, or why it cannot be taken apart; `closes` are tokens that end a response."""
    try:
        asked = template.render([_USER], add_generation_prompt=True)
        bare = template.render([_USER])
        longer = template.render([_USER, _ANSWER, _AGAIN], add_generation_prompt=True)
    except TemplateRejects as error:
        return f"it rejects a question and its answer ({error})"
    found = _apart(asked, bare, longer, closes)
    if isinstance(found, str):
        return found
    turns = _with_system(found, _tried(template, [_SYSTEM, _USER]))
    if turns is None or not _agrees(turns, template):
        return "it does not write a turn the same wherever it stands"
    return turns


def _apart(asked: str, bare: str, longer: str, closes: Sequence[str]) -> Turns | str:
    """Questions, answers, and what stands before the first turn and before a response."""
    before, _, rest = asked.partition(ASKED)
    _, _, after = bare.partition(ASKED)
    between, follows = longer.partition(ASKED)[2].partition(ANSWERED)[::2]
    onwards = follows.partition(AGAIN)[0]
    if not (rest.startswith(after) and between.startswith(after)):
        after = (
            ""  # it ends every text by a token of its own: what follows is taken with the answer
        )
    closer = next((token for token in closes if onwards.startswith(token)), None)
    if closer is None:
        return f"it closes an answer within a conversation by {onwards!r}, and not by {closes}"
    gap = len(onwards) - len(onwards.removeprefix(closer).lstrip())
    ends = (gap, len(closer) + len(onwards[len(closer) : gap].split(" ")[0]), len(closer))
    end = next((end for end in ends if before.endswith(onwards[end:])), None)
    if end is None:
        return "it opens the first question in another way than those after it"
    user = Frame(onwards[end:], after)
    assistant = Frame(between.removeprefix(after), onwards[:end])
    begin, opens = before.removesuffix(user.before), rest.removeprefix(after)
    return Turns(begin, "", user, assistant, opens, system=None, joined=None)


def _with_system(turns: Turns, told: str | None) -> Turns | None:
    """The turns, with how a system message is written as `told` has it; None where it is neither way."""
    if told is None or SYSTEM not in told:
        return turns
    before, _, rest = told.partition(SYSTEM)
    between = rest.partition(ASKED)[0]
    if before == turns.begin + turns.user.before:
        return turns._replace(joined=between)
    if not between.endswith(turns.user.before):
        return None
    after = between.removesuffix(turns.user.before)
    if before.startswith(turns.begin):
        return turns._replace(system=Frame(before.removeprefix(turns.begin), after))
    return turns._replace(begin="", default=turns.begin, system=Frame(before, after))


def _agrees(turns: Turns, template: ChatTemplate) -> bool:
    """Whether the turns make what the template writes."""
    conversations = [[_USER], [_USER, _ANSWER, _AGAIN], [_USER, _ANSWER, _AGAIN, _ANSWER, _USER]]
    if turns.takes_system:
        conversations += [[_SYSTEM, *messages] for messages in conversations]
    return all(turns.written(said) == _tried(template, said) for said in conversations)


def _tried(template: ChatTemplate, messages: list[Any]) -> str | None:
    """The text of a conversation that a response is to follow; None where it is rejected."""
    try:
        return template.render(messages, add_generation_prompt=True)
    except TemplateRejects:
        return None
