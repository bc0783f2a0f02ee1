"""Which prompts are judged, and whether a row that would be trained on asks one of them. No torch."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from alignflow.data.turns import Message, same_question

LEAST_WORDS = 5
"""A shorter prompt is looked for on lines of its own only: within a sentence it would be anywhere."""
_WORD = re.compile(r"\w+")
_LABEL = re.compile(r"[\w#* ]{1,20}:\s*")
_BLANK = re.compile(r"\n\s*\n")

Words = tuple[str, ...]


class Asked(NamedTuple):
    """First user turns that must not be trained on."""

    known: frozenset[str]
    """As `same_question` has them, or their sha256: those of the ledger are known by it alone."""
    beginnings: dict[Words, list[Words]]
    """First words of a prompt to all words of those that begin so."""

    @classmethod
    def of(cls, turns: Iterable[str], digests: Collection[str] = ()) -> Asked:
        """Those in words, and those by digest."""
        known = {same_question(turn) for turn in turns} - {""}
        beginnings: defaultdict[Words, list[Words]] = defaultdict(list)
        for words in {_words(turn) for turn in known}:
            if len(words) >= LEAST_WORDS:
                beginnings[words[:LEAST_WORDS]].append(words)
        return cls(frozenset(known | {*digests}), dict(beginnings))

    def among(self, messages: list[Message]) -> bool:
        """Whether a user turn of a conversation, whichever, is one of them."""
        return any(self._is(turn["content"]) for turn in messages if turn["role"] == "user")

    def within(self, text: str) -> bool:
        """Whether one stands in a text: its words in their order, or lines that are nothing else."""
        words = _words(same_question(text))
        for at in range(len(words) - LEAST_WORDS + 1 if self.beginnings else 0):
            for wanted in self.beginnings.get(words[at : at + LEAST_WORDS], ()):
                if words[at : at + len(wanted)] == wanted:
                    return True
        return bool(self.known) and any(map(self._is, _passages(text)))

    def _is(self, text: str) -> bool:
        turn = same_question(text)
        return turn in self.known or hashlib.sha256(turn.encode()).hexdigest() in self.known


def _words(turn: str) -> Words:
    return tuple(_WORD.findall(turn))


def _passages(text: str) -> Iterator[str]:
    """Lines and paragraphs of a text, each as it is and without a label such as `Question:`."""
    for passage in {*text.splitlines(), *_BLANK.split(text), text}:
        yield passage
        stripped = passage.lstrip()
        if label := _LABEL.match(stripped):
            yield stripped[label.end() :]
