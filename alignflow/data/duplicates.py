"""Texts that repeat each other: equal once normalised, or near by the words that they share."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

NEAR = 0.8
"""Jaccard similarity of shingles from which two texts are near."""
SOUGHT_FROM, WEIGHTS = 0.7, (0.05, 0.95)
"""Looked for with MinHash, which estimates. What it finds is computed, so that what it misses weighs
more than what it finds too much."""
SHINGLE_WORDS = 2
_WORD = re.compile(r"\w+")


class Likeness(NamedTuple):
    """A text that was known before."""

    place: int
    """Among the texts in the order in which they were added."""
    similarity: float
    """Jaccard, of shingles; 1 is the same text."""


class KnownTexts:
    """Texts by which others are looked up; normalised as `same_question` has them."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._places: dict[str, int] = {}
        self._shingles: dict[int, frozenset[str]] = {}
        self._nearby: Any = MinHashLSH(threshold=SOUGHT_FROM, weights=WEIGHTS)

    def like(self, text: str) -> Likeness | None:
        """The known text that is the same, else the nearest of those that are near."""
        if text in self._places:
            return Likeness(self._places[text], 1.0)
        shingles = shingles_of(text)
        found = [
            Likeness(place, jaccard(shingles, self._shingles[place]))
            for place in self._nearby.query(_sketch(shingles))
        ]
        best = max(found, key=lambda one: (one.similarity, -one.place), default=None)
        return best if best and best.similarity >= NEAR else None

    def add(self, text: str) -> None:
        """Makes a text known; of equal ones the first."""
        place = len(self._shingles)
        self._shingles[place] = shingles_of(text)
        if text not in self._places:
            self._places[text] = place
            self._nearby.insert(place, _sketch(self._shingles[place]))


def shingles_of(text: str) -> frozenset[str]:
    """Two words after each other, wherever they stand; of a shorter text all of it."""
    words = _WORD.findall(text)
    count = max(len(words) - SHINGLE_WORDS + 1, 1)
    return frozenset(" ".join(words[at : at + SHINGLE_WORDS]) for at in range(count))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared of all."""
    return len(one & other) / len(one | other)


def _sketch(shingles: frozenset[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash()
    sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return sketch
