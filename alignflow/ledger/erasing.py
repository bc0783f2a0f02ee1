"""Removing texts for good: from ledger, quarantine, snapshots and files. Ids stay as tombstones.

Tombstones come first, then files, and the ledger's own texts last: they say what to look for, so an
`erase` that was killed is repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, delete, select, text, update

from alignflow.errors import DataError
from alignflow.faults import faultpoint
from alignflow.files import sha256_file
from alignflow.ledger.erasing_files import ERASED, Words, erase_from_files, keep_rows, words_of
from alignflow.ledger.reports import find_row, models_of
from alignflow.ledger.schema import files, observations, quarantine, ratings, rows, snapshots, texts
from alignflow.ledger.store import in_parts, opened, reading, rows_in, writing


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


class Erasable(NamedTuple):
    """What an `erase` would reach in the ledger."""

    rows: list[str]
    """Ids, those of the contrary pairs with them."""
    ratings: int
    """Ratings of the source that have a text."""
    models: list[dict[str, Any]]
    """Generations that were trained on any of the rows, and keep what they learned."""


def erasable(home: Path, *, row_id: str | None = None, source: str | None = None) -> Erasable:
    """What `erase` with the same arguments would reach; nothing is changed.

    Raises:
        DataError: There is no such row.
    """
    with opened(home, create=False) as engine, reading(engine) as connection:
        keys = _with_opposites(connection, _chosen(connection, row_id, source or ""))
        rated = len(_rated_texts(connection, source))
        return Erasable(_ids_of(connection, keys), rated, models_of(connection, keys))


def erase(
    home: Path, *, row_id: str | None = None, source: str | None = None, reason: str
) -> Erased:
    """Removes the text of one row, or of everything that a source, annotator or file gave.

    `row_id` may be the beginning of an id; the contrary pair, the same text, goes too. `reason` is
    kept with the ids.

    Raises:
        DataError: There is no such row or source.
    """
    with opened(home, create=False) as engine:
        with writing(engine) as connection:
            keys = _with_opposites(connection, _chosen(connection, row_id, source or ""))
            ids = _bury(connection, keys, reason)
            said = select(texts.c.prompt, texts.c.chosen, texts.c.rejected)
            written = [*map(tuple, rows_in(connection, said, texts.c.row, keys))]
            written += _rated_texts(connection, source)
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


def _chosen(connection: Connection, row_id: str | None, source: str) -> list[int]:
    """Rows of an id, in whatever sets, or else those that a source gave."""
    if row_id:
        chosen = select(rows.c.key).where(rows.c.id == find_row(connection, row_id).id)
    else:
        chosen = (
            select(observations.c.row)
            .join(files, files.c.key == observations.c.file)
            .where(
                (observations.c.source == source)
                | (observations.c.annotator == source)
                | files.c.label.in_(_labels(source))
            )
            .distinct()
        )
    return list(connection.execute(chosen).scalars())


def _with_opposites(connection: Connection, keys: list[int]) -> list[int]:
    opposites = rows_in(connection, select(rows.c.opposite), rows.c.key, keys)
    return sorted({*keys, *(key for (key,) in opposites if key is not None)})


def _labels(source: str) -> tuple[str, str]:
    """What a file of this name is called in the ledger."""
    return source, str(Path(source).expanduser().absolute())


def _rated_texts(connection: Connection, source: str | None) -> list[tuple[str, str, str]]:
    """Texts of a source's ratings, in the form of rows."""
    if source is None:
        return []
    rated = select(ratings.c.prompt, ratings.c.completion).where(
        ratings.c.source == source, ratings.c.prompt.is_not(None)
    )
    return [(prompt, text, text) for prompt, text in connection.execute(rated)]


def _erase_quarantine(connection: Connection, words: Words, source: str | None) -> int:
    """Empties what is kept of bad rows that hold one of the texts, or came from the source."""
    needles = [form.encode() for word in words.parts for form in _as_json(word)]
    sources = [form.encode() for form in _as_json(source)] if source else []
    hit: list[tuple[int, int]] = []
    place = (quarantine.c.file, quarantine.c.offset)
    kept_rows = select(*place, quarantine.c.raw, files.c.label).join(
        files, files.c.key == quarantine.c.file
    )
    for file, offset, raw, label in connection.execute(kept_rows):
        kept = bytes(raw)
        named = source is not None and label in _labels(source)
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
    gone: list[ColumnElement[bool]] = [
        (ratings.c.prompt == prompt) & ratings.c.completion.in_([chosen, rejected])
        for prompt, chosen, rejected in written
    ]
    if source:
        gone.append(ratings.c.source == source)
    emptied = update(ratings).values(prompt=None, completion=None)
    return sum(connection.execute(emptied.where(condition)).rowcount for condition in gone)


def _bury(connection: Connection, keys: list[int], reason: str) -> list[str]:
    """Marks rows as erased, so that nothing is trained on them from now on; their ids."""
    for part in in_parts(keys):
        connection.execute(
            update(rows).where(rows.c.key.in_(part), rows.c.erased.is_(None)).values(erased=reason)
        )
    return _ids_of(connection, keys)


def _ids_of(connection: Connection, keys: list[int]) -> list[str]:
    named = rows_in(connection, select(rows.c.id), rows.c.key, keys)
    return sorted({bytes(name).hex() for (name,) in named})


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
    changed: list[str] = []
    for path in sorted((home / "snapshots").rglob("*.parquet")):
        try:
            if not keep_rows(path, lambda fields: fields["id"] not in ids, ["id"]):
                continue
        except FileNotFoundError:  # rows that waited once: another run has dropped the file
            continue
        changed.append(str(path))
        with writing(engine) as connection:
            same = update(snapshots).where(snapshots.c.name == path.stem)
            connection.execute(same.values(sha256=sha256_file(path)))
    return changed
