"""Tables of the ledger. One row of `rows` is one preference pair of one set.

Texts stand in `texts`, apart, so that counting reads little and erasing deletes whole rows. Keys of
`rows` are given in the order of commits (writers take turns), so a key is also a point in time.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()


def filled(kind: Any, *names: str) -> list[Column[Any]]:
    """Columns of one type that are never NULL."""
    return [Column(name, kind, nullable=False) for name in names]


Key = BigInteger().with_variant(Integer, "sqlite")

versions = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

sets = Table(
    "sets",
    metadata,
    Column("key", Key, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("threshold", Integer),
    Column("judged", BigInteger, nullable=False),  # last row that a verdict was about
    Column("announced", BigInteger, nullable=False),  # `judged` when an event was last written
    Column("model", Text),  # whose generations consume the rows
)

holdouts = Table(
    "holdouts",
    metadata,
    Column("key", Key, primary_key=True),
    Column("salt", Text, nullable=False),
    *filled(Float, "share"),
    Column("created", Text, nullable=False),
)

prompts = Table(
    "prompts",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("held_out", Boolean, nullable=False),
    Column("holdout", Key, ForeignKey("holdouts.key"), nullable=False),
    sqlite_with_rowid=False,
)

files = Table(
    "files",
    metadata,
    Column("key", Key, primary_key=True),
    Column("preference_set", Key, ForeignKey("sets.key"), nullable=False),
    *filled(Text, "sha256", "label"),
    Column("bytes", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),  # everything before it is in the ledger
    Column("done", Boolean, nullable=False),
    *filled(BigInteger, "accepted", "duplicates", "quarantined"),
    Column("created", Text, nullable=False),
    UniqueConstraint("preference_set", "sha256"),
)

rows = Table(
    "rows",
    metadata,
    Column("key", Key, primary_key=True, autoincrement=False),
    Column("preference_set", Key, ForeignKey("sets.key"), nullable=False),
    Column("id", LargeBinary, nullable=False),
    Column("held_out", Boolean, nullable=False),
    Column("opposite", BigInteger),  # the pair that says the contrary
    Column("left_out", Boolean, nullable=False),  # it has at least as many votes
    Column("snapshot", Key),  # that reserves or has consumed it
    Column("dropped", Text),  # why `prepare` could not use it
    Column("erased", Text),  # why its text is gone
    Column("file", Key, nullable=False),  # where it was first seen
    UniqueConstraint("preference_set", "id"),
)

texts = Table(
    "texts",
    metadata,
    Column("row", Key, primary_key=True, autoincrement=False),
    *filled(Text, "prompt", "chosen", "rejected"),
)

observations = Table(
    "observations",
    metadata,
    Column("row", BigInteger, primary_key=True),
    Column("file", BigInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("part", Integer, primary_key=True),  # of a line that says several pairs
    Column("voter", LargeBinary, nullable=False),
    *(Column(name, Text) for name in ("annotator", "time", "source", "model")),
    sqlite_with_rowid=False,
)

ratings = Table(
    "ratings",
    metadata,
    Column("key", Key, primary_key=True),
    Column("preference_set", Key, ForeignKey("sets.key"), nullable=False),
    *filled(LargeBinary, "id", "prompt_id", "prompt_hash"),
    *(Column(name, Text) for name in ("prompt", "completion")),
    Column("liked", Boolean, nullable=False),
    Column("source", Text),
    Column("file", Key, nullable=False),
    UniqueConstraint("preference_set", "id"),
    Index("ratings_by_prompt", "preference_set", "prompt_id"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("file", BigInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("preference_set", Key, ForeignKey("sets.key"), nullable=False),
    *filled(Text, "reason", "message", "sha256"),
    Column("bytes", BigInteger, nullable=False),
    Column("raw", LargeBinary, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("key", Key, primary_key=True),
    Column("preference_set", Key, ForeignKey("sets.key"), nullable=False),
    Column("name", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("last_row", BigInteger, nullable=False),  # newest row when it was frozen
    Column("state", Text, nullable=False),
    *filled(BigInteger, "row_count", "replayed"),
    Column("sha256", Text),  # of its Parquet file
    Column("recipe", Text),
    Column("champion", Integer),
    Column("holdout", Key, nullable=False),
    Column("verdict", Text),
    Column("created", Text, nullable=False),
    Column("decided", Text),
    UniqueConstraint("preference_set", "name"),
    Index(
        "one_undecided_snapshot",
        "preference_set",
        unique=True,
        sqlite_where=text("state = 'undecided'"),
        postgresql_where=text("state = 'undecided'"),
    ),
)

snapshot_rows = Table(
    "snapshot_rows",
    metadata,
    Column("snapshot", Key, primary_key=True),
    Column("row", BigInteger, primary_key=True),
    Column("replayed", Boolean, nullable=False),
    Index("snapshots_of_row", "row"),
    sqlite_with_rowid=False,
)

promotions = Table(
    "promotions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("generation", Integer, primary_key=True),
    *filled(Text, "digest", "artifacts"),
    Column("snapshot", Key),
    *filled(Text, "reason", "created"),
    Column("undone", Text),  # why it was rolled back
)

outbox = Table(
    "outbox",
    metadata,
    Column("key", Key, primary_key=True),
    *filled(Text, "event", "payload", "created"),
    Column("sent", Text),
)
