"""SQL answers on databases of the user's own: what is right, what is refused, and what is stopped."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_cases import new_database, postgres_server

from alignflow.builtin.freight.judge import judge as freight_judge
from alignflow.errors import DataError, StageError
from alignflow.evaluation.execution import execution_judge
from alignflow.recipe.judging import ExecutionArguments
from alignflow.sql import Limits, PostgresDatabase, SqliteDatabase, read_target

STAFF = [(1, "Ann", 10.5, "north"), (2, "Bo", 20.25, None), (3, "Cy", 30.0, "north")]
OTHERS = [(1, "Dee", 7.0, "south"), (2, "Eli", 7.5, "north"), (3, "Flo", 7.25, "north")]
COUNT = "SELECT COUNT(*) FROM staff WHERE depot = 'north'"
REFUSAL = "I only read."
RUNAWAY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT SUM(i) FROM n"


def company(path: Path, staff: list[tuple] = STAFF) -> str:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE staff (id INTEGER, name TEXT, pay REAL, depot TEXT)")
        connection.executemany("INSERT INTO staff VALUES (?, ?, ?, ?)", staff)
    connection.close()
    return str(path)


def category(answer: str, target: str, *databases: str, **arguments: object) -> str:
    chosen = ExecutionArguments.model_validate({"database": list(databases), **arguments})
    return execution_judge(chosen)(answer, target).category


@pytest.mark.parametrize(
    ("answer", "target", "expected"),
    [
        ("select count(id) from staff where depot = 'north';", COUNT, "correct"),
        ("SELECT COUNT(*) FROM staff", COUNT, "wrong"),
        ("WITH a AS (SELECT * FROM staff) SELECT 2 FROM a LIMIT 1", COUNT, "correct"),
        ("SELECT 2.0", COUNT, "correct"),
        ("SELECT 2.01", COUNT, "wrong"),
        ("SELECT name FROM staff ORDER BY name DESC", "SELECT name FROM staff", "correct"),
        (
            "SELECT name FROM staff ORDER BY name DESC",
            "SELECT name FROM staff ORDER BY name",
            "wrong",
        ),
        ("SELECT pay / 3 * 3 FROM staff", "SELECT pay FROM staff", "correct"),
        ("SELECT depot FROM staff WHERE id = 2", "SELECT NULL", "correct"),
        ("SELECT 0 WHERE 1", "SELECT NULL", "wrong"),
        ("SELECT name FROM staff LIMIT 2", "SELECT name FROM staff", "wrong"),
        ("SELECT 1, 2", "SELECT 2, 1", "wrong"),
        (f"```sql\n{COUNT}\n```", COUNT, "chatter"),
        ("SELECT nothing FROM nowhere", COUNT, "invalid"),
        ("DELETE FROM staff", COUNT, "unsafe"),
        ("ATTACH DATABASE 'other.sqlite' AS o", COUNT, "unsafe"),
        ("PRAGMA query_only = OFF", COUNT, "unsafe"),
        ("SELECT load_extension('x')", COUNT, "invalid"),
        (f"{COUNT}; DROP TABLE staff", COUNT, "unsafe"),
        (REFUSAL, REFUSAL, "correct"),
        (REFUSAL, COUNT, "wrong"),
        (COUNT, REFUSAL, "wrong"),
        (f"Sorry. {REFUSAL}", REFUSAL, "chatter"),
    ],
)
def test_what_an_answer_is(tmp_path: Path, answer: str, target: str, expected: str) -> None:
    path = company(tmp_path / "company.sqlite")
    assert category(answer, target, path, refusal=REFUSAL) == expected


def test_an_answer_that_is_right_on_one_database_by_luck_is_wrong_on_both(tmp_path: Path) -> None:
    first, second = company(tmp_path / "a.sqlite"), company(tmp_path / "b.sqlite", OTHERS)
    target, lucky = "SELECT MAX(pay) FROM staff", "SELECT pay FROM staff WHERE id = 3"
    assert category(lucky, target, first) == "correct"
    assert category(lucky, target, first, second) == "wrong"
    assert category("SELECT MAX(pay) + 0 FROM staff", target, first, second) == "correct"


def test_nothing_is_written_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = Path(company(tmp_path / "a.sqlite"))
    before = path.read_bytes()
    database = SqliteDatabase.at(str(path), Limits())
    for statement in (
        "DELETE FROM staff",
        "CREATE TABLE t (x)",
        f"ATTACH '{tmp_path / 'new.sqlite'}' AS n",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "VACUUM",
    ):
        assert re.search("not authorized|denied", str(database.run(statement))), statement
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.sqlite"]


def test_a_query_without_an_end_is_stopped(tmp_path: Path) -> None:
    path = company(tmp_path / "a.sqlite")
    started = time.monotonic()
    assert category(RUNAWAY, COUNT, path, timeout_seconds=0.2) == "invalid"
    assert category("SELECT hex(zeroblob(500000000))", COUNT, path) == "invalid"
    assert time.monotonic() - started < 5


def test_a_target_that_does_not_run_is_an_error_and_no_score(tmp_path: Path) -> None:
    path = company(tmp_path / "a.sqlite")
    with pytest.raises(DataError, match=r"'SELECT wage FROM staff' does not run on .*no such col"):
        category("SELECT 1", "SELECT wage FROM staff", path)


def test_what_is_no_finished_database_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, however long this text may be" * 50)
    with pytest.raises(DataError, match="is no SQLite database"):
        SqliteDatabase.at(str(text), Limits())
    with pytest.raises(DataError, match="there is no database"):
        SqliteDatabase.at(str(tmp_path / "none.sqlite"), Limits())
    path = tmp_path / "open.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (x)")
    with pytest.raises(DataError, match="holds changes that the file lacks"):
        SqliteDatabase.at(str(path), Limits())
    writer.close()


def test_a_target_says_whether_its_order_counts_or_its_query_does() -> None:
    assert read_target("SELECT a FROM t ORDER BY a").ordered
    assert not read_target(
        "SELECT a FROM (SELECT a FROM t ORDER BY (b)) WHERE c = 'order by'"
    ).ordered
    assert read_target('{"answer": "SELECT a FROM t", "ordered": true}').ordered
    assert not read_target('{"answer": "SELECT a FROM t ORDER BY a", "ordered": false}').ordered


def test_the_freight_job_is_judged_by_its_own_rules() -> None:
    target = '{"answer": "SELECT SUM(age) FROM trucks", "ordered": false}'
    assert execution_judge(ExecutionArguments()) is freight_judge
    assert freight_judge("SELECT SUM(age) FROM trucks", target).correct
    assert freight_judge("SELECT SUM(age) * 1.0 FROM trucks", target).category == "wrong"
    assert freight_judge("WITH a AS (SELECT 1) SELECT 1", target).category == "chatter"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import psycopg

    with postgres_server() as server:
        url = new_database(server, "company")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE staff (id INT, name TEXT, pay NUMERIC, depot TEXT)")
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO staff VALUES (%s, %s, %s, %s)", STAFF)
        yield url


@pytest.fixture
def postgres(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("COMPANY_DB_URL", address)
    return {"postgres": "COMPANY_DB_URL", "version": "2026-11"}


def test_postgres_is_read_and_never_written(address: str, postgres: dict[str, str]) -> None:
    import psycopg

    judge = execution_judge(ExecutionArguments.model_validate({"database": postgres}))
    assert judge("SELECT 2.0", COUNT).correct
    assert judge("SELECT SUM(pay) FROM staff", "SELECT 60.75").correct
    assert judge("SELECT nothing FROM staff", COUNT).category == "invalid"
    assert judge(COUNT, COUNT).correct  # after an error
    database = PostgresDatabase("COMPANY_DB_URL", Limits())
    hidden = "SELECT $$'$$; COMMIT; DELETE FROM staff; SELECT $$'$$"
    writes = [
        "DELETE FROM staff",
        hidden,
        "WITH gone AS (DELETE FROM staff RETURNING *) SELECT * FROM gone",
        "SELECT set_config('transaction_read_only', 'off', false), nextval('s')",
    ]
    for statement in writes:
        assert isinstance(database.run(statement), str), statement
    assert judge(hidden, COUNT).category == "invalid"
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT COUNT(*) FROM staff").fetchone() == (3,)


def test_postgres_stops_what_runs_for_long_or_returns_too_much(postgres: dict[str, str]) -> None:
    database = PostgresDatabase("COMPANY_DB_URL", Limits(seconds=0.3))
    started = time.monotonic()
    assert "QueryCanceled" in str(database.run("SELECT pg_sleep(60)"))
    assert "QueryCanceled" in str(database.run(RUNAWAY))
    lifted = "SELECT set_config('statement_timeout', '0', false)"
    assert database.run(lifted) == (("0",),)
    assert "QueryCanceled" in str(database.run("SELECT pg_sleep(61)"))
    few = PostgresDatabase("COMPANY_DB_URL", Limits(rows=100))
    assert few.run("SELECT generate_series(1, 1000)") == "more than 100 rows"
    assert time.monotonic() - started < 20


def test_no_message_repeats_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("postgresql://u:canary@127.0.0.1:1/canary", "canary u:canary"):
        monkeypatch.setenv("COMPANY_DB_URL", url)
        with pytest.raises(StageError, match="COMPANY_DB_URL cannot be reached") as caught:
            PostgresDatabase("COMPANY_DB_URL", Limits()).run("SELECT 1")
        assert "canary" not in str(caught.value) and caught.value.__suppress_context__
    monkeypatch.delenv("COMPANY_DB_URL")
    with pytest.raises(DataError, match="COMPANY_DB_URL is not set here"):
        PostgresDatabase("COMPANY_DB_URL", Limits()).run("SELECT 1")
