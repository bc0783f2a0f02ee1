"""One batch of lines becomes one transaction: rows, observations, quarantine, offset and event."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, select, update

from alignflow.data import (
    MAX_MESSAGE_CHARACTERS,
    BadRow,
    Observation,
    Preference,
    Rating,
    by_neighbour,
    is_half,
    joined,
    observation_of,
    one_row,
    pair_ids,
    preferences_of,
)
from alignflow.faults import faultpoint
from alignflow.ledger.holdout import decide
from alignflow.ledger.outbox import announce
from alignflow.ledger.parsing import KEPT_BYTES, Line, Told, fields_of, raw_of
from alignflow.ledger.schema import files, observations, quarantine, ratings, rows, texts
from alignflow.ledger.store import insert_many, insert_one, rows_in, select_in, update_one

MAX_RATINGS = 64
_TOLD_NOTHING = Told()


class Pair(NamedTuple):
    """One pair that a line says."""

    offset: int
    part: int
    preference: Preference
    observation: Observation
    id: bytes
    opposite_id: bytes


class Rated(NamedTuple):
    """One rating that a line gives."""

    offset: int
    rating: Rating
    observation: Observation


class Bad(NamedTuple):
    """One line that goes to quarantine."""

    offset: int
    reason: str
    message: str
    sha256: str
    size: int
    raw: bytes


class Batch(NamedTuple):
    """What some lines that follow each other hold."""

    start: int
    end: int
    pairs: list[Pair]
    rated: list[Rated]
    bad: list[Bad]
    size: int = 0
    """Bytes of its lines, as far as they were lines."""

    @property
    def lines(self) -> int:
        """Lines that hold something, as far as bad files are judged by it."""
        return len(self.bad) + len(self.rated) + len({pair.offset for pair in self.pairs})


ROW_COLUMNS = ("key", "preference_set", "id", "held_out", "opposite", "file", "left_out")
"""What a row of the ledger begins with."""


class Counts(NamedTuple):
    """What became of what was read, in pairs: read = accepted + duplicates + quarantined."""

    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    contradictory: int = 0
    """Part of `accepted`: the contrary pair is in the ledger."""
    held_out: int = 0
    """Part of `accepted`."""
    unpaired: int = 0
    """Ratings taken in, before the pairs that they form."""

    def plus(self, other: Counts) -> Counts:
        """The sum of both."""
        return Counts(*(one + two for one, two in zip(self, other, strict=True)))


class FileKey(NamedTuple):
    """A file of a set, as the ledger knows it."""

    key: int
    preference_set: int
    siblings: frozenset[int] = frozenset()
    """Files that the same call took rows from before."""


class Overtaken(Exception):
    """Another process has taken in these lines; the ledger stands at `offset`."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def parsed(
    lines: Sequence[Line], told: Told = _TOLD_NOTHING, *, more_follow: bool = False
) -> Batch:
    """Parses lines without asking the ledger: the slow part, outside of any transaction.

    Where `more_follow`, a last line that may belong to the next one is left to the next batch.
    """
    pairs: list[Pair] = []
    rated: list[Rated] = []
    bad: list[Bad] = []
    groups, end = _grouped(lines, told, more_follow)
    for line, fields in groups:
        try:
            if isinstance(fields, BadRow):
                raise fields
            with one_row():
                said, seen = preferences_of(fields, told.form), observation_of(fields)
        except BadRow as problem:
            bad.append(_bad(line, problem))
            continue
        if isinstance(said, Rating):
            rated.append(Rated(line.offset, said, seen))
        else:
            pairs += [
                Pair(line.offset, part, pair, seen, *pair_ids(pair))
                for part, pair in enumerate(said)
            ]
    return Batch(lines[0].offset, end, pairs, rated, bad, sum(line.size for line in lines))


_Read = tuple[Line, dict[str, Any] | BadRow]


def _grouped(lines: Sequence[Line], told: Told, more_follow: bool) -> tuple[list[_Read], int]:
    """Lines that hold something, two that are one row as one, and where they end."""
    read = [_read(line, told) for line in lines if line.fields is not None or line.raw.strip()]
    groups = list(by_neighbour(read, _fields))
    end = lines[-1].end
    if more_follow and groups and len(groups[-1]) == 1 and is_half(_fields(groups[-1][0])):
        end = groups.pop()[0][0].offset
    return [_as_one(*group) for group in groups], end


def _read(line: Line, told: Told) -> _Read:
    try:
        with one_row():
            fields = fields_of(line)
            return line, told.mapped(fields) if told.columns else fields
    except BadRow as problem:
        return line, problem


def _fields(read: _Read) -> dict[str, Any] | None:
    return None if isinstance(read[1], BadRow) else read[1]


def _as_one(one: _Read, two: _Read | None = None) -> _Read:
    if two is None:
        return one
    fields = joined(_fields(one) or {}, _fields(two) or {})
    return Line(one[0].offset, two[0].end, b"", one[0].size + two[0].size, fields), fields


def _bad(line: Line, problem: BadRow) -> Bad:
    raw = raw_of(line)
    return Bad(
        line.offset,
        problem.reason,
        str(problem).encode("utf-8", "backslashreplace").decode()[:MAX_MESSAGE_CHARACTERS],
        hashlib.sha256(raw).hexdigest(),
        line.size or len(raw),
        raw[:KEPT_BYTES],
    )


def commit(connection: Connection, file: FileKey, batch: Batch) -> Counts:
    """Puts a batch into the ledger, in the caller's transaction.

    Raises:
        Overtaken: The file stands at another offset than the batch starts at.
    """
    offset = connection.execute(select(files.c.offset).where(files.c.key == file.key)).scalar_one()
    if offset != batch.start:
        raise Overtaken(offset)
    pairs, unpaired, repeated = batch.pairs, 0, 0
    if batch.rated:
        formed, unpaired, repeated = _take_ratings(connection, file, batch.rated)
        pairs = [*pairs, *formed]
    counts = _take_pairs(connection, file, pairs)
    counts = counts.plus(Counts(0, repeated, len(batch.bad), 0, 0, unpaired))
    insert_many(
        connection,
        quarantine,
        [(file.key, bad.offset, file.preference_set, *bad[1:]) for bad in batch.bad],
    )
    faultpoint("ledger.add.rows")
    update_one(
        connection,
        files,
        file.key,
        offset=batch.end,
        accepted=files.c.accepted + counts.accepted,
        duplicates=files.c.duplicates + counts.duplicates,
        quarantined=files.c.quarantined + counts.quarantined,
    )
    if counts.accepted or counts.duplicates:
        announce(connection, file.preference_set)
    faultpoint("ledger.add.commit")
    return counts


class _Known(NamedTuple):
    key: int
    opposite: int | None
    file: int


def _known(
    connection: Connection, preference_set: int, ids: Collection[bytes]
) -> dict[bytes, _Known]:
    entries = select_in(
        connection,
        "SELECT id, key, opposite, file FROM rows WHERE preference_set = {} AND id IN ({})",
        ids,
        preference_set,
    )
    return {bytes(name): _Known(*rest) for name, *rest in entries}


def _take_pairs(connection: Connection, file: FileKey, pairs: list[Pair]) -> Counts:
    if not pairs:
        return Counts()
    ids = {pair.id for pair in pairs}
    known = _known(connection, file.preference_set, ids | {pair.opposite_id for pair in pairs})
    held_out = decide(connection, (pair.preference.prompt_hash for pair in pairs))
    last = connection.execute(select(func.coalesce(func.max(rows.c.key), 0))).scalar_one()
    new: dict[bytes, Pair] = {}
    for pair in pairs:
        if pair.id not in known:
            new.setdefault(pair.id, pair)
    keys = {name: row.key for name, row in known.items()}
    keys |= {name: last + number for number, name in enumerate(new, 1)}
    opposed = {n: keys[pair.opposite_id] for n, pair in new.items() if pair.opposite_id in keys}
    held = {name: held_out[pair.preference.prompt_hash] for name, pair in new.items()}
    begun = [
        (keys[name], file.preference_set, name, held[name], opposed.get(name), file.key, False)
        for name in new
    ]
    insert_many(connection, rows, begun, ROW_COLUMNS)
    written = [(keys[name], *pair.preference[:3]) for name, pair in new.items()]
    insert_many(connection, texts, written)
    seen = [
        (keys[pair.id], file.key, pair.offset, pair.part, pair.observation.voter, *pair.observation)
        for pair in pairs
    ]
    insert_many(connection, observations, seen)
    _set_each(connection, "opposite", {opposite: keys[n] for n, opposite in opposed.items()})
    touched = {(keys[name], opposite) for name, opposite in opposed.items()} | {
        (known[pair.id].key, opposite)
        for pair in pairs
        if pair.id in known and (opposite := known[pair.id].opposite) is not None
    }
    weigh(connection, touched)
    mine = {file.key, *file.siblings}
    contraries = [known[pair.opposite_id] for pair in new.values() if pair.opposite_id in known]
    return Counts(
        accepted=len(new),
        duplicates=len(pairs) - len(new),
        # with those that the same call brought before, and a new row contradicts only now
        contradictory=len(opposed) + sum(row.file in mine for row in contraries),
        held_out=sum(held.values()),
    )


def _set_each(connection: Connection, column: str, values: dict[int, Any]) -> None:
    """Gives a column of `rows` its values, by key."""
    if values:
        changed = update(rows).where(rows.c.key == bindparam("b_key"))
        connection.execute(
            changed.values({column: bindparam("b_value")}),
            [{"b_key": key, "b_value": value} for key, value in sorted(values.items())],
        )


def weigh(connection: Connection, touched: Iterable[tuple[int, int]]) -> None:
    """Leaves out of every two contradictory rows the one with fewer votes; both on a tie."""
    both = sorted({key for pair in touched for key in pair})
    voters = func.count(observations.c.voter.distinct())
    counted = select(observations.c.row, voters).group_by(observations.c.row)
    votes = Counter(dict(rows_in(connection, counted, observations.c.row, both)))
    left_out: dict[int, bool] = {}
    for one, two in touched:
        left_out[one], left_out[two] = votes[one] <= votes[two], votes[two] <= votes[one]
    _set_each(connection, "left_out", left_out)


def _take_ratings(
    connection: Connection, file: FileKey, rated: list[Rated]
) -> tuple[list[Pair], int, int]:
    """Stores ratings and returns the pairs they form with opposite ones, how many are new, how many not."""
    formed: list[Pair] = []
    new = repeated = 0
    for entry in rated:
        rating = entry.rating
        prompt_id = hashlib.sha256(rating.prompt.encode()).digest()
        same = connection.execute(
            select(ratings.c.id, ratings.c.completion, ratings.c.liked).where(
                ratings.c.preference_set == file.preference_set, ratings.c.prompt_id == prompt_id
            )
        ).all()
        if any(bytes(name) == rating.id for name, _, _ in same) or len(same) >= MAX_RATINGS:
            repeated += 1
            continue
        new += 1
        insert_one(
            connection,
            ratings,
            **rating._asdict(),
            preference_set=file.preference_set,
            id=rating.id,
            prompt_id=prompt_id,
            source=entry.observation.source,
            file=file.key,
        )
        others = [text for _, text, liked in same if liked != rating.liked and text is not None]
        formed += [
            _formed(entry, part, other)
            for part, other in enumerate(others)
            if other != rating.completion
        ]
    decide(connection, {entry.rating.prompt_hash for entry in rated})
    return formed, new, repeated


def _formed(entry: Rated, part: int, other: str) -> Pair:
    rating = entry.rating
    chosen, rejected = (rating.completion, other) if rating.liked else (other, rating.completion)
    preference = Preference(rating.prompt, chosen, rejected, rating.prompt_hash)
    return Pair(entry.offset, part, preference, entry.observation, *pair_ids(preference))
