"""Opening the ledger, and its transactions. Writers take turns, so keys follow commits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from alignflow.errors import DataError, DiskSpaceError
from alignflow.ledger.migrations import MIGRATIONS, current_version, migrate
from alignflow.ledger.schema import holdouts, sets
from alignflow.settings import Settings, ledger_path

URL_VARIABLE = "ALIGNFLOW_LEDGER_URL"
WAIT_SECONDS = 120
PARAMETERS = 10_000
POSTGRES_LOCK = 0x616C6967
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs")
FIRST_SALT = "alignflow"
HOLDOUT_SHARE = 0.05
REFUSED = ("42501", "25006")
"""Postgres: the role may not; the server, or its transaction, is read-only."""
CONNECT_SECONDS = 15
FULL_DISK = ("database or disk is full", "disk I/O error", "No space left", "could not extend file")


def now() -> str:
    """The time, for people; nothing is ordered by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def opened(home: Path, *, create: bool = True) -> Generator[Engine]:
    """The ledger of an absolute home, at the present schema version; `create` makes an absent one.

    Raises:
        DataError: It is absent, damaged, newer than this alignflow, or unreachable.
        DiskSpaceError: A file system is full.
    """
    url = Settings().ledger_url
    engine = _server(url.get_secret_value()) if url else _embedded(home, create)
    place = engine.url.render_as_string(hide_password=True)
    try:
        with explained(place, home):
            _prepare(engine, place)
            yield engine
    finally:
        engine.dispose()


@contextmanager
def explained(place: str, home: Path) -> Generator[None]:
    """Turns the database's errors into ours."""
    try:
        yield
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        if any(sign in str(error.orig) for sign in FULL_DISK):
            free_bytes = shutil.disk_usage(home).free
            raise DiskSpaceError(
                f"The ledger {place} cannot grow ({reason}; {free_bytes} bytes free). The batch was "
                "undone as a whole and nothing before it is lost. Free some space and repeat the command: "
                "it continues where it stopped."
            ) from error
        state = getattr(error.orig, "sqlstate", None)
        if isinstance(error, OperationalError) or "not a database" in reason or state in REFUSED:
            raise DataError(
                f"The ledger {place} cannot be used: {reason}. Check {URL_VARIABLE}, the server and "
                "the file; nothing was changed."
            ) from error
        raise


@contextmanager
def writing(engine: Engine) -> Generator[Connection]:
    """One write transaction; the only one at its time."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK})
        yield connection


@contextmanager
def reading(engine: Engine) -> Generator[Connection]:
    """One read transaction: everything in it is of one moment."""
    with engine.connect() as connection, connection.begin():
        yield connection


def insert_one(connection: Connection, table: Table, /, **values: Any) -> int:
    """Inserts a row; its key."""
    made = connection.execute(insert(table).values(values)).inserted_primary_key
    assert made is not None
    return int(made[0])


def update_one(connection: Connection, table: Table, key: int, /, **values: Any) -> None:
    """Changes the row of a key."""
    connection.execute(update(table).where(table.c.key == key).values(values))


def count(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    """How many rows there are of which all of these hold."""
    return connection.execute(select(func.count()).where(*conditions)).scalar_one()


def insert_many(
    connection: Connection,
    table: Table,
    entries: Sequence[tuple[Any, ...]],
    columns: Sequence[str] | None = None,
) -> None:
    """Inserts many rows, each with a value for each of `columns`, or for all of the table's.

    The statement is written out: for a thousand rows SQLAlchemy's own costs more than the database.
    """
    if not entries:
        return
    chosen = columns or table.columns.keys()
    names = ", ".join(f'"{name}"' for name in chosen)
    marks = ", ".join([_mark(connection)] * len(chosen))
    connection.exec_driver_sql(
        f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})', list(entries)
    )


def _mark(connection: Connection) -> str:
    """What stands for a value in a written-out statement."""
    return "?" if connection.dialect.name == "sqlite" else "%s"


def select_in(
    connection: Connection, statement: str, values: Collection[Any], *before: Any
) -> Iterator[Any]:
    """Rows of a written-out SELECT, which has `{}` for each of `before` and one for many values."""
    mark = _mark(connection)
    for part in in_parts(values):
        marks = ",".join([mark] * len(part))
        sql = statement.format(*([mark] * len(before)), marks)
        yield from connection.exec_driver_sql(sql, (*before, *part))


def rows_in(
    connection: Connection,
    statement: Any,
    column: ColumnElement[Any],
    values: Collection[Any],
) -> Iterator[Any]:
    """Rows of a SELECT in which a column has one of many values, in parts."""
    for part in in_parts(values):
        yield from connection.execute(statement.where(column.in_(part)))


def in_parts(values: Collection[Any]) -> Iterator[list[Any]]:
    """Values in lists that are short enough for one statement's parameters."""
    listed = list(values)
    return (listed[start : start + PARAMETERS] for start in range(0, len(listed), PARAMETERS))


def preference_set(connection: Connection, name: str) -> int:
    """Key of a set, made if need be."""
    key = find_set(connection, name)
    return insert_one(connection, sets, name=name, judged=0, announced=-1) if key is None else key


def find_set(connection: Connection, name: str) -> int | None:
    """Key of a set, if there is one of that name."""
    return connection.execute(select(sets.c.key).where(sets.c.name == name)).scalar_one_or_none()


def require_set(connection: Connection, name: str) -> int:
    """Key of a set.

    Raises:
        DataError: There is none of that name.
    """
    key = find_set(connection, name)
    if key is None:
        names = ", ".join(connection.execute(select(sets.c.name).order_by(sets.c.name)).scalars())
        raise DataError(
            f"ledger:{name}: the ledger has no preference set {name!r} (it has: {names or 'none'}). "
            f"Fill it with `alignflow prefs add FILE --into {name}`, or correct the name."
        )
    return key


def _server(url: str) -> Engine:
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            url = "postgresql+psycopg://" + url.removeprefix(prefix)
    if not url.startswith("postgresql+psycopg://"):
        kind = url.split(":", 1)[0]
        raise DataError(
            f"{URL_VARIABLE} names a {kind!r} database; the ledger knows postgresql:// addresses. "
            "Unset it for SQLite in the home."
        )
    try:
        return create_engine(url, connect_args={"connect_timeout": CONNECT_SECONDS})
    except (ArgumentError, ValueError) as error:
        raise DataError(
            f"{URL_VARIABLE} is no address of a database ({type(error).__name__}). Write it as "
            "postgresql://USER:PASSWORD@HOST:5432/DATABASE, with %-escapes in the password."
        ) from error


def _embedded(home: Path, create: bool) -> Engine:
    path = ledger_path(home)
    if not path.exists():
        if not create:
            raise DataError(
                f"There is no ledger in {home} ({path} is not there). Take in preferences with "
                "`alignflow prefs add FILE`, or correct --home."
            )
        home.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    kind = file_system_of(home)
    if kind in NETWORK_FILE_SYSTEMS:
        raise DataError(
            f"{home} is on a network file system ({kind}), where SQLite's log is not safe. Put the "
            f"home on a local disk, or the ledger on Postgres with {URL_VARIABLE}."
        )
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": WAIT_SECONDS})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's recipe: BEGIN is ours
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "cache_size=-65536",
        "secure_delete=ON",
        "wal_autocheckpoint=4000",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare(engine: Engine, place: str) -> None:
    with reading(engine) as connection:
        if current_version(connection) == len(MIGRATIONS):
            return
    with writing(engine) as connection:
        migrate(connection, place)
        if connection.execute(select(holdouts.c.key).limit(1)).first() is None:
            insert_one(connection, holdouts, salt=FIRST_SALT, share=HOLDOUT_SHARE, created=now())


def file_system_of(path: Path) -> str:
    """Type of the file system that holds `path`; empty where the system does not tell."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    resolved, best, kind = path.resolve(), Path(), ""
    for line in mounts:
        _, place, this, *_ = line.split(" ")
        mount = Path(place.replace("\\040", " "))
        if resolved.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, this
    return kind
