"""Documents cut into passages: by heading, then by sentence, with an overlap where a section is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alignflow.retrieval.documents import Document
from alignflow.stages import Record

_HEADING = re.compile(r"(#{1,6})\s+(.+)")
_FENCE = re.compile(r"\s*(```|~~~)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)")


class Chunk(Record):
    """A passage of a document."""

    id: str
    """`DOCUMENT#NUMBER`, from 1."""
    document: str
    heading: str
    """Headings above it, the outermost first; empty where there are none."""
    text: str

    @property
    def shown(self) -> str:
        """The passage as a reader gets it: under its heading."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


class _Section(NamedTuple):
    heading: str
    paragraphs: list[str]


class _Piece(NamedTuple):
    """A sentence, or as much of one as a passage holds."""

    text: str
    before: str
    """What stands between it and the piece before it."""

    @property
    def words(self) -> int:
        return len(self.text.split())


def chunks_of(document: Document, chunk_words: int, overlap_words: int) -> list[Chunk]:
    """The passages of a document, none longer than `chunk_words`; equal documents, equal passages."""
    texts = [
        (section.heading, text)
        for section in _sections(document.text)
        for text in _packed(
            list(_pieces(section, chunk_words, overlap_words)), chunk_words, overlap_words
        )
    ]
    return [
        Chunk(id=f"{document.name}#{number}", document=document.name, heading=heading, text=text)
        for number, (heading, text) in enumerate(texts, 1)
    ]


def _sections(text: str) -> Iterator[_Section]:
    """What stands under each heading; a `#` within a block of code is no heading."""
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    in_code = False

    def section() -> _Section:
        blocks = re.split(r"\n\s*\n", "\n".join(lines))
        heading = " > ".join(title for _, title in path)
        return _Section(heading, [block.strip("\n") for block in blocks if block.strip()])

    for line in text.splitlines():
        in_code ^= bool(_FENCE.match(line))
        heading = None if in_code else _HEADING.fullmatch(line.strip())
        if heading is None:
            lines.append(line)
            continue
        yield section()
        level, lines = len(heading[1]), []
        path = [entry for entry in path if entry[0] < level]
        path.append((level, heading[2].strip("# ")))
    yield section()


def _pieces(section: _Section, longest: int, overlap: int) -> Iterator[_Piece]:
    for paragraph in section.paragraphs:
        before = "\n\n"
        for sentence in _SENTENCE_END.split(paragraph):
            words = sentence.split()
            if len(words) <= longest:
                yield _Piece(sentence, before)
            else:
                for start in range(0, max(len(words) - overlap, 1), longest - overlap):
                    yield _Piece(" ".join(words[start : start + longest]), before)
                    before = " "
            before = " "


def _packed(pieces: Sequence[_Piece], longest: int, overlap: int) -> Iterator[str]:
    """Pieces joined until the next would not fit; then on from the last that fit the overlap."""
    held: list[_Piece] = []
    new = 0
    for piece in pieces:
        if new and sum(p.words for p in held) + piece.words > longest:
            yield _text(held)
            room = min(overlap, longest - piece.words)
            held, new = _tail(held, room), 0
        held, new = [*held, piece], new + 1
    if new:
        yield _text(held)


def _tail(pieces: Sequence[_Piece], most_words: int) -> list[_Piece]:
    """The last pieces that have at most so many words."""
    kept: list[_Piece] = []
    for piece in reversed(pieces):
        if sum(p.words for p in kept) + piece.words > most_words:
            break
        kept.insert(0, piece)
    return kept


def _text(pieces: Sequence[_Piece]) -> str:
    first, *rest = pieces
    return first.text + "".join(piece.before + piece.text for piece in rest)
