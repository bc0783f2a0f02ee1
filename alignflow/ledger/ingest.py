"""Taking files in: judged, then batch by batch, each with its offset in one transaction.

Killed at any moment and repeated, or run twice at once, it goes on where the ledger stands.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, select

from alignflow.data import LINES, BadRow, columns_that_fit, require_form
from alignflow.errors import RecipeError
from alignflow.faults import faultpoint
from alignflow.files import CHUNK_BYTES
from alignflow.ledger.batches import Batch, Counts, FileKey, Overtaken, commit, parsed
from alignflow.ledger.incoming import Refused, Source, refuse, sources_in
from alignflow.ledger.parsing import (
    JUDGED_START_BYTES,
    SUFFIXES,
    Line,
    RefusedFile,
    Told,
    Unpacked,
    check_kind,
    fields_of,
    lines_of,
    open_regular,
)
from alignflow.ledger.schema import files, quarantine
from alignflow.ledger.store import (
    insert_one,
    now,
    opened,
    preference_set,
    reading,
    update_one,
    writing,
)
from alignflow.recipe import PREFERENCE_SET_PATTERN

BATCH_LINES = 8000
BATCH_BYTES = 8 * 1024 * 1024
JUDGED_BYTES = 8 * 1024 * 1024
"""A file is judged as a whole up to this size, a larger one by its beginning."""
MAX_BAD_SHARE = 0.5
_TOLD_NOTHING = Told()

OnProgress = Callable[[str, int, int, int], None]
"""Called with label, rows so far, bytes (or rows of Parquet) done and bytes in all."""


class Added(NamedTuple):
    """What `add` did."""

    files: int
    counts: Counts
    reasons: dict[str, int]
    """Quarantined, by reason."""
    first: dict[str, str]
    """Reason to file, offset and message of its first row."""
    refused: list[Refused]

    def as_json(self) -> dict[str, Any]:
        """The documented object."""
        counts = self.counts
        return {
            "files": self.files,
            "read": counts.accepted + counts.duplicates + counts.quarantined,
            "accepted": counts.accepted,
            "duplicates": counts.duplicates,
            "contradictory": counts.contradictory,
            "held_out": counts.held_out,
            "unpaired": counts.unpaired,
            "quarantined": self.reasons,
            "refused_files": [entry._asdict() for entry in self.refused],
        }


def add(
    home: Path,
    sources: Iterable[Path],
    into: str = "default",
    on_progress: OnProgress | None = None,
    told: Told = _TOLD_NOTHING,
) -> Added:
    """Takes preferences of files and folders into the set of a name, in an absolute home.

    What is refused in a folder is moved to its `rejected/`. `on_progress` is called after each batch.
    `told` is what the rows are, where their columns do not tell.

    Raises:
        DataError: A file or folder is not there, or the ledger cannot be used.
        RecipeError: The set's name is none.
        DiskSpaceError: The disk is full. The batch at hand was undone, those before it are kept.
    """
    inside = [source for path in sources for source in sources_in(path)]
    return add_sources(home, inside, into, on_progress, told)


def add_sources(
    home: Path,
    sources: Sequence[Source],
    into: str = "default",
    on_progress: OnProgress | None = None,
    told: Told = _TOLD_NOTHING,
) -> Added:
    """`add` for files that were found already."""
    if not re.fullmatch(PREFERENCE_SET_PATTERN, into):
        raise RecipeError(
            f"{into!r} cannot name a preference set: wanted letters, digits, '.', '_' or '-', at most "
            "63, the first a letter or digit."
        )
    require_form(told.form, "prefs add")
    counts = Counts()
    reasons: dict[str, int] = {}
    first: dict[str, str] = {}
    refused: list[Refused] = []
    brought: set[int] = set()
    with opened(home) as engine:
        with writing(engine) as connection:
            set_key = preference_set(connection, into)
        for source in sources:
            try:
                file, own = _add_file(
                    engine, set_key, source, frozenset(brought), on_progress, told
                )
            except RefusedFile as problem:
                refused.append(refuse(source, problem))
                continue
            counts = counts.plus(own)
            if own.accepted:
                brought.add(file.key)
            _tell_bad(engine, file, source.label, reasons, first)
    return Added(len(sources) - len(refused), counts, reasons, first, refused)


def add_stream(home: Path, stream: Any, into: str = "default", told: Told = _TOLD_NOTHING) -> Added:
    """Takes JSONL from a stream in, once it has ended."""
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".stdin-") as folder:
        path = Path(folder) / "stdin.jsonl"
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)
        return add(home, [path], into, None, told)


def _add_file(
    engine: Engine,
    set_key: int,
    source: Source,
    siblings: frozenset[int],
    on_progress: OnProgress | None,
    told: Told,
) -> tuple[FileKey, Counts]:
    """What this call did, and as duplicates what had been taken in of the same file before."""
    if not source.path.name.endswith(SUFFIXES):
        raise RefusedFile("unknown_kind", f"is none of {', '.join(SUFFIXES)}")
    sha256, size = _first_pass(source.path)
    faultpoint("ledger.add.hashed")
    file, offset, done, judged = _register(engine, set_key, sha256, size, source, told)
    file, own = file._replace(siblings=siblings), Counts()
    if not done:
        batches = chain(judged, _batches(source.path, judged[-1].end if judged else offset, told))
        own = _add_batches(engine, file, source, batches, size, on_progress, told)
    with reading(engine) as connection:
        total = connection.execute(select(files).where(files.c.key == file.key)).one()
    before = total.duplicates + total.accepted - own.accepted
    return file, own._replace(duplicates=before, quarantined=total.quarantined)


def _first_pass(path: Path) -> tuple[str, int]:
    """sha256 and size of a file; a compressed one is unpacked once, and refused if it is bad."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        if path.name.endswith(LINES):
            check_kind(path, file.read(JUDGED_START_BYTES))
            file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        if path.name.endswith(".gz"):
            file.seek(0)
            unpacked = Unpacked(file)
            while unpacked.read(CHUNK_BYTES):
                pass
    return digest.hexdigest(), size


def _register(
    engine: Engine, set_key: int, sha256: str, size: int, source: Source, told: Told
) -> tuple[FileKey, int, bool, list[Batch]]:
    """Key, offset and state of the file of this content, and what was parsed to judge it.

    Raises:
        RefusedFile: The file is new, and most of it is bad.
    """
    same_content = (
        select(files.c.key, files.c.offset, files.c.done)
        .where(files.c.preference_set == set_key)
        .where(files.c.sha256 == sha256)
    )
    with reading(engine) as connection:
        known = connection.execute(same_content).first()
    if known is None:
        judged = _judge(source.path, size, told)
        with writing(engine) as connection:
            known = connection.execute(same_content).first()
            if known is None:
                named = {"preference_set": set_key, "sha256": sha256, "label": source.label}
                unread = dict.fromkeys(("offset", "accepted", "duplicates", "quarantined"), 0)
                state = {"bytes": size, "done": False, "created": now()}
                key = insert_one(connection, files, **named, **unread, **state)
                return FileKey(key, set_key), 0, False, judged
    return FileKey(known.key, set_key), known.offset, known.done, []


def _judge(path: Path, size: int, told: Told) -> list[Batch]:
    """The beginning of a file, parsed.

    Raises:
        RefusedFile: There is no row in it, or most of them are bad.
    """
    lines = bad = read = 0
    judged: list[Batch] = []
    first: dict[str, str] = {}
    with lines_of(path, 0) as source:
        beginning = next(source, None)
        for batch in _parsed(chain([beginning] if beginning else [], source), told):
            judged.append(batch)
            lines += batch.lines
            bad += len(batch.bad)
            for entry in batch.bad:
                first.setdefault(entry.reason, entry.message)
            read += batch.size or BATCH_BYTES
            if read > JUDGED_BYTES:
                break
    if not lines or beginning is None:
        raise RefusedFile("empty", f"holds no row ({size} bytes)")
    if bad > MAX_BAD_SHARE * lines:
        reasons = "; ".join(f"{reason} ({text})" for reason, text in list(first.items())[:5])
        raise RefusedFile(
            "mostly_bad",
            f"has {bad} bad rows of {lines}, more than {MAX_BAD_SHARE:.0%}: {reasons}. Nothing of it was "
            f"taken in; {_columns_for(beginning) or 'repair it and add it again'}",
        )
    return judged


def _columns_for(line: Line) -> str:
    """What to add a file with whose rows are pairs or ratings under other names of their columns."""
    try:
        fields = fields_of(line)
    except BadRow:
        return ""
    columns = columns_that_fit(fields, "preferences") or columns_that_fit(fields, "ratings") or {}
    named = " ".join(f"--column {quote(f'{ours}={name}')}" for ours, name in columns.items())
    return named and f"add it again with `{named}`"


def _parsed(lines: Iterator[Line], told: Told) -> Iterator[Batch]:
    """Batches that follow each other; two lines that are one row are in one of them."""
    waiting: list[Line] = []
    for chunk in _chunks(lines):
        batch = parsed([*waiting, *chunk], told, more_follow=True)
        waiting = [line for line in (*waiting, *chunk) if line.offset >= batch.end]
        if batch.end > batch.start:
            yield batch
    if waiting:
        yield parsed(waiting, told)


def _chunks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Lines in groups that are bounded in number and size."""
    while chunk := list(islice(_bounded(lines), BATCH_LINES)):
        yield chunk


def _bounded(lines: Iterator[Line]) -> Iterator[Line]:
    size = 0
    for line in lines:
        yield line
        size += len(line.raw)
        if size >= BATCH_BYTES:
            return


def _add_batches(
    engine: Engine,
    file: FileKey,
    source: Source,
    batches: Iterator[Batch],
    size: int,
    on_progress: OnProgress | None,
    told: Told,
) -> Counts:
    """Takes in what is left of a file; starts over where another process has overtaken this one."""
    counts = Counts()
    while True:
        try:
            for batch in batches:
                with writing(engine) as connection:
                    own = commit(connection, file, batch)
                counts = counts.plus(own)
                faultpoint("ledger.add.committed")
                if on_progress:
                    on_progress(source.label, sum(counts[:3]), batch.end, size)
            break
        except Overtaken as overtaken:
            batches = _batches(source.path, overtaken.offset, told)
    with writing(engine) as connection:
        update_one(connection, files, file.key, done=True)
    faultpoint("ledger.add.done")
    return counts


def _batches(path: Path, offset: int, told: Told) -> Iterator[Batch]:
    with lines_of(path, offset) as lines:
        yield from _parsed(lines, told)


def _tell_bad(
    engine: Engine, file: FileKey, label: str, reasons: dict[str, int], first: dict[str, str]
) -> None:
    counted = (
        select(quarantine.c.reason, func.count(), func.min(quarantine.c.offset))
        .where(quarantine.c.file == file.key)
        .group_by(quarantine.c.reason)
        .order_by(func.count().desc(), quarantine.c.reason)
    )
    with reading(engine) as connection:
        for reason, number, offset in connection.execute(counted):
            reasons[reason] = reasons.get(reason, 0) + number
            if reason not in first:
                message = connection.execute(
                    select(quarantine.c.message).where(
                        quarantine.c.file == file.key, quarantine.c.offset == offset
                    )
                ).scalar_one()
                first[reason] = f"{label} at {offset}: {message}"
