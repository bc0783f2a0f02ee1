"""Databases that any statement may be tried on: nothing is written, and nothing runs for long.

SQLite: opened read-only, `query_only`, an authorizer that allows reading alone (no ATTACH, PRAGMA or
extension), a deadline in the progress handler. Postgres: a READ ONLY transaction per statement, which
is rolled back, a statement timeout, and one statement only, by the extended protocol.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alignflow.errors import DataError, StageError

Rows = tuple[tuple[Any, ...], ...]

REMEMBERED_RESULTS = 512
CONNECT_SECONDS = 10
_ALLOWED_ACTIONS = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)


class Limits(NamedTuple):
    """Where a statement is stopped."""

    seconds: float = 5.0
    rows: int = 10_000
    value_bytes: int = 1_000_000
    """Longest value that SQLite makes; Postgres has no such limit."""


class Database(Protocol):
    """Runs statements of which nothing is known."""

    name: str

    def run(self, sql: str) -> Rows | str:
        """The rows, or why there are none."""
        ...


def _size_of(file: Path) -> int:
    """Bytes of a file that its writer may remove at any moment; 0 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


class SqliteDatabase:
    """A connection made `read_only`, which remembers what statements returned."""

    def __init__(
        self,
        name: str,
        connection: sqlite3.Connection,
        limits: Limits,
        remembered: int = REMEMBERED_RESULTS,
    ) -> None:
        self.name = name
        self._connection = connection
        self._limits = limits
        self.run = lru_cache(maxsize=remembered)(self._run)

    @classmethod
    def at(cls, path: str, limits: Limits) -> SqliteDatabase:
        """The database in a file.

        Raises:
            DataError: There is no such file, it is no database, or a writer has not finished it.
        """
        file = Path(path).expanduser().absolute()
        waiting = file.with_name(f"{file.name}-wal")
        if not file.is_file():
            raise DataError(f"there is no database {path!r} ({file}). Name a SQLite file.")
        if _size_of(waiting):
            raise DataError(
                f"{path!r} is open elsewhere: {waiting.name} holds changes that the file lacks. "
                "Close its writers, or run `PRAGMA wal_checkpoint(TRUNCATE)`."
            )
        connection = sqlite3.connect(
            f"{file.as_uri()}?mode=ro&immutable=1",
            uri=True,
            check_same_thread=False,
            isolation_level=None,
        )
        try:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise DataError(f"{path!r} is no SQLite database ({error}).") from error
        return cls(path, read_only(connection, limits.value_bytes), limits)

    def _run(self, sql: str) -> Rows | str:
        deadline = time.monotonic() + self._limits.seconds
        self._connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 1000)
        try:
            rows = self._connection.execute(sql).fetchmany(self._limits.rows + 1)
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, ValueError, MemoryError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self._connection.set_progress_handler(None, 0)
        return _within(rows, self._limits)


def read_only(connection: sqlite3.Connection, value_bytes: int) -> sqlite3.Connection:
    """The connection, from now on for reading only."""
    connection.execute("PRAGMA query_only = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, value_bytes)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED_ACTIONS else sqlite3.SQLITE_DENY


def _within(rows: list[Any], limits: Limits) -> Rows | str:
    return tuple(rows) if len(rows) <= limits.rows else f"more than {limits.rows} rows"


class PostgresDatabase:
    """The database whose address an environment variable holds; no message repeats the address."""

    def __init__(self, variable: str, limits: Limits) -> None:
        self.name = f"${variable}"
        self._limits = limits
        self._connection: Any = None
        self.run = lru_cache(maxsize=REMEMBERED_RESULTS)(self._run)

    @property
    def missing(self) -> str | None:
        """What to do about a variable that is not set in this process."""
        if os.environ.get(self.name[1:]):
            return None
        return (
            f"the environment variable {self.name[1:]} is not set here. It holds the address of a "
            "database that answers are run on; set it where stages run."
        )

    def _run(self, sql: str) -> Rows | str:
        import psycopg

        if self._connection is None:
            self._connection = self._connect()
            weakref.finalize(self, self._connection.close)
        try:
            with self._connection.transaction(force_rollback=True):
                milliseconds = max(1, round(self._limits.seconds * 1000))
                self._connection.execute("SET TRANSACTION READ ONLY")
                self._connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
                with self._connection.cursor(name="answer") as cursor:
                    rows = cursor.execute(sql).fetchmany(self._limits.rows + 1)
        except (psycopg.Error, UnicodeError, ValueError) as error:
            if self._connection.closed:
                raise StageError(
                    f"The connection to {self.name} was lost ({type(error).__name__})."
                ) from None
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return _within(rows, self._limits)

    def _connect(self) -> Any:
        import psycopg

        if self.missing:
            raise DataError(self.missing)
        address = os.environ[self.name[1:]]
        try:
            return psycopg.connect(
                address.replace("postgresql+psycopg://", "postgresql://", 1),
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
            )
        except psycopg.Error as error:
            raise StageError(
                f"The database at {self.name} cannot be reached ({type(error).__name__}). "
                f'`psql "{self.name}"` says why.'
            ) from None
