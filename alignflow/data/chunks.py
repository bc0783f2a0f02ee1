"""Stretches of a source: each becomes token ids, is written, and is noted, so that none is done twice.

A stretch is as many rows as CHUNK_ROWS and the next shard of its part. What becomes of it is noted in
`chunks.jsonl` of the stage's work directory once its shards are durable; an attempt after one that was
killed takes what is noted and whole, and makes the rest, byte for byte as if nothing had happened.
Where there is more than one stretch, they are made on several processors.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from alignflow.data.file_rows import RawRow
from alignflow.data.parts import PARTS
from alignflow.data.rows import Outcome, Rules, SourceAccount, account_of, outcome_of
from alignflow.data.stored import SHARD, write_shard
from alignflow.files import fsync_directory, fsync_file, sha256_file
from alignflow.recipe import DataSource, is_ledger
from alignflow.stages import Prepared, Record, RowAccount, end_with_parent

CHUNK_ROWS = 2000
"""Of 500 tokens they take some 50 MB while they are made."""
NOTED = "chunks.jsonl"


class Chunk(NamedTuple):
    """A stretch of a source's rows."""

    part: str
    number: int
    """Among those of its part."""
    source: DataSource
    rows: list[RawRow]


class Done(Record):
    """What became of a stretch."""

    part: str
    number: int
    rows: RowAccount
    first: dict[str, str]
    """Reason to the first row dropped for it, and why."""
    remedy: str
    without_loss: int
    """Assistant turns of used rows that nothing is learned from."""
    dropped_ids: dict[str, str] = Field(default_factory=dict)
    """Rows of the ledger that could not be used: id to reason."""
    shards: dict[str, str]
    """File of the artifact to its sha256."""

    def account(self, source: str) -> SourceAccount:
        """Its rows' account, under the name of their source."""
        return SourceAccount(self.part, source, self.rows, self.first, self.remedy)


class Maker(NamedTuple):
    """Makes shards of stretches."""

    rules: Rules
    files: Prepared

    def __call__(self, chunk: Chunk) -> Done:
        outcomes = [outcome_of(chunk.part, row, self.rules) for row in chunk.rows]
        account = account_of(chunk.part, chunk.source, outcomes)
        kept = [outcome for outcome in outcomes if outcome.dropped is None]
        shards: dict[str, str] = {}
        for name in ("train", "held_out"):
            rows = columns_of(kept, held_out=name == "held_out")
            shards |= self._written(chunk, name, rows) if rows else {}
        return Done(
            part=chunk.part,
            number=chunk.number,
            rows=account.rows,
            first=account.first,
            remedy=account.remedy,
            without_loss=sum(outcome.responses_without_loss for outcome in outcomes),
            dropped_ids=dropped_ids_of(chunk.source, outcomes),
            shards=shards,
        )

    def _written(self, chunk: Chunk, name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
        path = self.files.rows(chunk.part, name) / SHARD.format(chunk.number)
        write_shard(path, rows, PARTS[chunk.part].columns)
        fsync_file(path)
        fsync_directory(path.parent)
        return {str(path.relative_to(self.files.directory)): sha256_file(path)}


def columns_of(outcomes: Iterable[Outcome], *, held_out: bool) -> list[dict[str, Any]]:
    """What is written of rows that are used."""
    chosen = (outcome for outcome in outcomes if outcome.held_out == held_out)
    return [columns for outcome in chosen for columns in outcome.columns]


def dropped_ids_of(source: DataSource, outcomes: Iterable[Outcome]) -> dict[str, str]:
    """Ids of the ledger's rows that are not used, with the reasons; none of another source."""
    return {
        outcome.row.fields["id"]: outcome.dropped
        for outcome in (outcomes if is_ledger(source.source) else ())
        if outcome.dropped is not None and outcome.row.fields is not None
    }


class Notes:
    """The stretches that earlier attempts made, and a place for those of this one."""

    def __init__(self, work: Path, artifact: Path) -> None:
        self._path = work / NOTED
        self._known = {(done.part, done.number): done for done in _noted(self._path, artifact)}

    def of(self, part: str, number: int) -> Done | None:
        """What became of a stretch, if it was made whole."""
        return self._known.get((part, number))

    def add(self, done: Done) -> None:
        """Notes a stretch, durably."""
        with self._path.open("ab") as file:
            file.write(done.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _noted(path: Path, artifact: Path) -> Iterator[Done]:
    """What is noted of shards that are whole. Half a line is what a killed attempt leaves."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    for line in whole.splitlines():
        done = Done.model_validate_json(line)
        if all(_is(artifact / name, digest) for name, digest in done.shards.items()):
            yield done


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def chunks_of(part: str, first: int, source: DataSource, rows: Iterable[RawRow]) -> Iterator[Chunk]:
    """The stretches of a source, numbered from `first` on."""
    left, number = iter(rows), first
    while taken := list(islice(left, CHUNK_ROWS)):
        yield Chunk(part, number, source, taken)
        number += 1


def made(
    chunks: Iterable[Chunk], maker: Callable[[Chunk], Done], notes: Notes, workers: int
) -> Iterator[tuple[Chunk, Done]]:
    """Every stretch with what became of it, in their order; noted where it was made now.

    As many are made at once as there may be workers, and no more are read ahead.
    """
    left = iter(chunks)
    taken = list(islice(left, 2))
    workers = workers if len(taken) > 1 else 1
    waiting: deque[tuple[Chunk, Callable[[], Done]]] = deque()
    with _making(maker, workers) as make:
        for chunk in chain(taken, left):
            known = notes.of(chunk.part, chunk.number)
            waiting.append((chunk, make(chunk) if known is None else partial(_itself, known)))
            if len(waiting) >= workers:
                yield _first_of(waiting, notes)
        while waiting:
            yield _first_of(waiting, notes)


def _itself(done: Done) -> Done:
    return done


def _first_of(waiting: deque[tuple[Chunk, Callable[[], Done]]], notes: Notes) -> tuple[Chunk, Done]:
    chunk, result = waiting.popleft()
    done = result()
    if notes.of(chunk.part, chunk.number) is None:
        notes.add(done)
    return chunk, done


@contextmanager
def _making(
    maker: Callable[[Chunk], Done], workers: int
) -> Generator[Callable[[Chunk], Callable[[], Done]]]:
    """What begins to make a stretch, and gives what waits for it."""
    if workers == 1:
        yield lambda chunk: partial(maker, chunk)
        return
    _Child.maker = maker  # a child has it by being forked: a template cannot travel
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork, initializer=_Child.begin) as pool:
        yield lambda chunk: pool.submit(_Child.make, chunk).result


class _Child:
    """A process that makes stretches."""

    maker: ClassVar[Callable[[Chunk], Done]]

    @staticmethod
    def begin() -> None:
        """It ends with the stage, and a preemption is none of its business."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent()

    @classmethod
    def make(cls, chunk: Chunk) -> Done:
        return cls.maker(chunk)
