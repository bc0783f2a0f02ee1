"""Rows, files and databases for the ledger's tests."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from alignflow.data.turns import first_user_turn
from alignflow.ledger.schema import prompts, ratings, rows, texts
from alignflow.ledger.store import opened, reading
from alignflow.settings import has_ledger

USER = "postgres"


def row(number: int, **more: Any) -> dict[str, Any]:
    """A good pair; equal numbers are equal pairs."""
    return {
        "prompt": f"question {number}",
        "chosen": f"a good answer to {number}",
        "rejected": f"a bad answer to {number}",
        **more,
    }


def swapped(pair: dict[str, Any]) -> dict[str, Any]:
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}


def write(path: Path, rows: list[Any]) -> Path:
    """JSONL; bytes are written as a line of their own."""
    lines = [entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def postgres_binaries() -> Path | None:
    """Directory of Debian's newest Postgres."""
    found = sorted(
        glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda p: int(p.split("/")[4])
    )
    return Path(found[-1]).parent if found else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Address of a Postgres server of our own, without the database's name."""
    binaries = postgres_binaries()
    if binaries is None or (os.getuid() == 0 and shutil.which("runuser") is None):
        reason = "Postgres is not installed (apt-get install postgresql), so it is not tested"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    as_user = ["runuser", "-u", USER, "--"] if os.getuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ledger-pg-"))
    if as_user:
        shutil.chown(folder, USER, USER)
    data = folder / "data"

    def call(*command: str) -> None:
        done = subprocess.run(
            [*as_user, *command], capture_output=True, text=True, cwd=folder, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr

    call(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", USER, "-N", "-E", "UTF8")
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    control = str(binaries / "pg_ctl")
    call(control, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://{USER}@127.0.0.1:{port}"
    finally:
        call(control, "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str, name: str) -> str:
    import psycopg

    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server}/{name}"


def content(home: Path, name: str = "default") -> dict[str, Any]:
    """What a set holds, without places and times: each row, its votes, and where it is."""
    from sqlalchemy import func, select

    from alignflow.ledger.schema import observations, rows, texts
    from alignflow.ledger.store import opened, reading, require_set

    with opened(home, create=False) as engine, reading(engine) as connection:
        key = require_set(connection, name)
        voters = func.count(observations.c.voter.distinct())
        counted = select(observations.c.row, voters).group_by(observations.c.row)
        votes = dict(map(tuple, connection.execute(counted)))
        found = connection.execute(
            select(rows, texts.c.prompt, texts.c.chosen, texts.c.rejected)
            .join(texts, texts.c.row == rows.c.key)
            .where(rows.c.preference_set == key)
        ).all()
        ids = {entry.key: bytes(entry.id).hex() for entry in found}
        return {
            ids[entry.key]: (
                entry.prompt,
                entry.chosen,
                entry.rejected,
                bool(entry.held_out),
                bool(entry.left_out),
                ids.get(entry.opposite),
                votes[entry.key],
            )
            for entry in found
        }


def held_out_prompts(home: Path) -> set[str]:
    """First user turns, normalised, that must not be trained on, as the ledger's tables say."""
    if not has_ledger(home):
        return set()
    asked = (
        select(texts.c.prompt)
        .join(rows, rows.c.key == texts.c.row)
        .where(rows.c.held_out.is_(True))
    )
    rated = (
        select(ratings.c.prompt)
        .join(prompts, prompts.c.hash == ratings.c.prompt_hash)
        .where(prompts.c.held_out.is_(True), ratings.c.prompt.is_not(None))
    )
    with opened(home, create=False) as engine, reading(engine) as connection:
        said = connection.execute(asked.union(rated)).scalars()
        return {first_user_turn(json.loads(prompt)) for prompt in said}
