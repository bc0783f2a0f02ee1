"""The judge of the freight job: answers are run on two random databases, which are in memory."""

from __future__ import annotations

import json
import sqlite3
from functools import cache
from random import Random

from alignflow.builtin.freight.world import REFUSAL, TABLES
from alignflow.sql import Limits, Rows, Rules, SqliteDatabase, Target, Verdict, read_only
from alignflow.sql import judge as judge_sql

DATABASE_SEEDS = (101, 202)
ROWS_PER_TABLE = 60
LIMITS = Limits(seconds=0.5, rows=2000, value_bytes=100_000)


def judge(answer: str, target: str) -> Verdict:
    """Judges the whole answer as `alignflow.sql.judge` does; nothing but SELECT is a query here.

    The target is JSON from `world.target`.
    """
    expected = json.loads(target)
    right = Target(str(expected["answer"]), bool(expected["ordered"]))
    return judge_sql(answer, right, [_world(seed) for seed in DATABASE_SEEDS], _RULES)


def database(seed: int) -> sqlite3.Connection:
    """A read-only database in memory, with random rows; no number repeats within a column."""
    rng = Random(seed)
    connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    for table in TABLES:
        texts = [
            [rng.choice(values) for _ in range(ROWS_PER_TABLE)]
            for values in table.text_columns.values()
        ]
        numbers = [rng.sample(range(1, 100), ROWS_PER_TABLE) for _ in table.number_columns]
        columns = [f"{name} TEXT" for name in table.text_columns]
        columns += [f"{name} INTEGER" for name in table.number_columns]
        connection.execute(f"CREATE TABLE {table.name} (id INTEGER, {', '.join(columns)})")
        marks = ", ".join("?" * len(table.columns))
        rows = zip(range(1, ROWS_PER_TABLE + 1), *texts, *numbers, strict=True)
        connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows)
    return read_only(connection, LIMITS.value_bytes)


@cache
def _world(seed: int) -> SqliteDatabase:
    return SqliteDatabase(f"freight {seed}", database(seed), LIMITS, remembered=4096)


def _same_cells(ours: Rows, theirs: Rows, ordered: bool) -> bool:
    """The job's labels tell 1 from 1.0, so its judge does."""
    return _comparable(ours, ordered) == _comparable(theirs, ordered)


def _comparable(rows: Rows, ordered: bool) -> list[str]:
    """The rows with floats rounded; sorted where their order means nothing."""
    cells = [
        repr(tuple(round(cell, 6) if isinstance(cell, float) else cell for cell in row))
        for row in rows
    ]
    return cells if ordered else sorted(cells)


_RULES = Rules(refusal=REFUSAL, openings=("select",), same=_same_cells)
