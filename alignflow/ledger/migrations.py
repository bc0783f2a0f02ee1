"""Bringing a ledger to the present schema, one numbered step after the other."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, insert, inspect, select

from alignflow.errors import DataError
from alignflow.ledger.schema import metadata, versions

Migration = Callable[[Connection], None]


def _first(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS: tuple[Migration, ...] = (_first,)
"""Step n brings version n - 1 to n. A released step is never changed; a change is a new step."""


def current_version(connection: Connection) -> int:
    """Version of the schema; 0 of an empty database."""
    if not inspect(connection).has_table(versions.name):
        return 0
    return connection.execute(select(func.max(versions.c.version))).scalar_one_or_none() or 0


def migrate(
    connection: Connection, place: str, migrations: tuple[Migration, ...] = MIGRATIONS
) -> None:
    """Applies the steps that are missing, in the caller's transaction.

    Raises:
        DataError: The ledger was written by a newer alignflow.
    """
    present = current_version(connection)
    if present > len(migrations):
        raise DataError(
            f"The ledger {place} has schema version {present}; this alignflow knows versions up to "
            f"{len(migrations)}. Nothing was changed. Install the newer alignflow that wrote it."
        )
    for version in range(present + 1, len(migrations) + 1):
        migrations[version - 1](connection)
        connection.execute(insert(versions).values(version=version))
