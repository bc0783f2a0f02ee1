"""Removing texts for good: from ledger, quarantine, snapshots and files. Ids stay as tombstones.

Tombstones come first, then files, and the ledger's own texts last: they say what to look for, so an
`erase` that was killed is repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, delete, or_, select, text, update

from alignflow.errors import DataError
from alignflow.faults import faultpoint
from alignflow.files import sha256_file
from alignflow.ledger.erasing_files import (
    ERASED,
    Words,
    erase_from_files,
    keep_rows,
    words_of,
)
from alignflow.ledger.reports import find_row, models_of
from alignflow.ledger.schema import files, observations, quarantine, ratings, rows, snapshots, texts
from alignflow.ledger.store import in_parts, opened, writing


class Erased(NamedTuple):
    """What `erase` did."""

    erased: list[str]
    """Ids whose text is gone, those that were gone before too."""
    quarantined: int
    snapshots: list[str]
    """Parquet files that were rewritten."""
    files: list[str]
    """Reports, prepared data, work in progress and inbox files that were rewritten."""
    models: list[dict[str, Any]]
    """Generations that were trained on any of the rows."""


def erase(
    home: Path, *, row_id: str | None = None, source: str | None = None, reason: str
) -> Erased:
    """Removes the text of one row, or of everything that a source, annotator or file gave.

    Args:
        home: Absolute home.
        row_id: A row's id or the beginning of it; the contrary pair, the same text, goes too.
        source: Name of a source, an annotator, or a file.
        reason: Kept with the ids.

    Raises:
        DataError: There is no such row or source.
    """
    with opened(home, create=False) as engine:
        with writing(engine) as connection:
            keys = _one(connection, row_id) if row_id else _of_source(connection, source or "")
            keys = _with_opposites(connection, keys)
            ids = _bury(connection, keys, reason)
            written = [*_texts(connection, keys), *_rated_texts(connection, source)]
            faultpoint("ledger.erase.buried")
        words = words_of(written)
        changed = erase_from_files(home, words)
        rewritten = _rewrite_snapshots(engine, home, set(ids))
        faultpoint("ledger.erase.files")
        with writing(engine) as connection:
            bad = _erase_quarantine(connection, words, source)
            bad_ratings = _erase_ratings(connection, written, source)
            if not keys and not bad and not bad_ratings:
                raise DataError(
                    f"Nothing in the ledger came from {source!r}. `alignflow prefs show ID` says what a "
                    "row's source, annotator and file are."
                )
            _erase_rows(connection, keys)
            models = models_of(connection, keys)
            faultpoint("ledger.erase.commit")
        _leave_no_trace(engine)
    return Erased(ids, bad, rewritten, changed, models)


def _one(connection: Connection, row_id: str) -> list[int]:
    row = find_row(connection, row_id)
    return list(connection.execute(select(rows.c.key).where(rows.c.id == row.id)).scalars())


def _of_source(connection: Connection, source: str) -> list[int]:
    given = (
        select(observations.c.row)
        .join(files, files.c.key == observations.c.file)
        .where(
            or_(
                observations.c.source == source,
                observations.c.annotator == source,
                files.c.label == source,
                files.c.label == str(Path(source).expanduser().absolute()),
            )
        )
        .distinct()
    )
    return list(connection.execute(given).scalars())


def _with_opposites(connection: Connection, keys: list[int]) -> list[int]:
    both = set(keys)
    for part in in_parts(keys):
        opposites = select(rows.c.opposite).where(
            rows.c.key.in_(part), rows.c.opposite.is_not(None)
        )
        both.update(key for key in connection.execute(opposites).scalars() if key is not None)
    return sorted(both)


def _texts(connection: Connection, keys: list[int]) -> list[tuple[str, str, str]]:
    written: list[tuple[str, str, str]] = []
    for part in in_parts(keys):
        chosen = select(texts.c.prompt, texts.c.chosen, texts.c.rejected).where(
            texts.c.row.in_(part)
        )
        written += connection.execute(chosen).tuples().all()
    return written


def _rated_texts(connection: Connection, source: str | None) -> list[tuple[str, str, str]]:
    """Texts of a source's ratings, in the form of rows."""
    if source is None:
        return []
    rated = select(ratings.c.prompt, ratings.c.completion).where(
        ratings.c.source == source, ratings.c.prompt.is_not(None)
    )
    return [(prompt, text, text) for prompt, text in connection.execute(rated).tuples()]


def _erase_quarantine(connection: Connection, words: Words, source: str | None) -> int:
    """Empties what is kept of bad rows that hold one of the texts, or came from the source."""
    needles = [form.encode() for word in words.parts for form in _as_json(word)]
    sources = [form.encode() for form in _as_json(source)] if source else []
    hit = []
    kept_rows = select(
        quarantine.c.file, quarantine.c.offset, quarantine.c.raw, files.c.label
    ).join(files, files.c.key == quarantine.c.file)
    for file, offset, raw, label in connection.execute(kept_rows):
        kept = bytes(raw)
        named = source is not None and label in (source, str(Path(source).expanduser().absolute()))
        quoted = any(b'"' + form + b'"' in kept for form in sources)
        if kept and (named or quoted or any(needle in kept for needle in needles)):
            hit.append((file, offset))
    for file, offset in hit:
        connection.execute(
            update(quarantine)
            .where(quarantine.c.file == file, quarantine.c.offset == offset)
            .values(raw=b"", message=ERASED)
        )
    return len(hit)


def _as_json(word: str) -> set[str]:
    """How a text may stand in JSON, without its quotes."""
    return {json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1]}


def _erase_ratings(
    connection: Connection, written: list[tuple[str, str, str]], source: str | None
) -> int:
    erased = 0
    for prompt, chosen, rejected in written:
        gone = update(ratings).where(
            ratings.c.prompt == prompt, ratings.c.completion.in_([chosen, rejected])
        )
        erased += connection.execute(gone.values(prompt=None, completion=None)).rowcount
    if source:
        gone = update(ratings).where(ratings.c.source == source)
        erased += connection.execute(gone.values(prompt=None, completion=None)).rowcount
    return erased


def _bury(connection: Connection, keys: list[int], reason: str) -> list[str]:
    """Marks rows as erased, so that nothing is trained on them from now on; their ids."""
    ids: set[str] = set()
    for part in in_parts(keys):
        connection.execute(
            update(rows).where(rows.c.key.in_(part), rows.c.erased.is_(None)).values(erased=reason)
        )
        named = connection.execute(select(rows.c.id).where(rows.c.key.in_(part))).scalars()
        ids |= {bytes(name).hex() for name in named}
    return sorted(ids)


def _erase_rows(connection: Connection, keys: list[int]) -> None:
    for part in in_parts(keys):
        connection.execute(delete(texts).where(texts.c.row.in_(part)))
        connection.execute(
            update(observations)
            .where(observations.c.row.in_(part))
            .values(annotator=None, source=None)
        )


def _leave_no_trace(engine: Engine) -> None:
    """Overwrites what the database keeps of deleted pages, in its log too."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            for table in (texts, quarantine, ratings, observations):
                connection.execute(text(f'VACUUM FULL "{table.name}"'))


def _rewrite_snapshots(engine: Engine, home: Path, ids: set[str]) -> list[str]:
    changed = []
    for path in sorted((home / "snapshots").rglob("*.parquet")):
        if not keep_rows(path, lambda fields: fields["id"] not in ids, ["id"]):
            continue
        changed.append(str(path))
        with writing(engine) as connection:
            connection.execute(
                update(snapshots)
                .where(snapshots.c.name == path.stem)
                .values(sha256=sha256_file(path))
            )
    return changed
