"""What `up` says of the ledger, and what `prefs erase` shows before it erases."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from ledger_cases import row, write

from alignflow.commands.cli import exit_code_of
from alignflow.errors import RecipeError
from alignflow.files import held
from alignflow.ledger import (
    add,
    erasable,
    freeze,
    news,
    promote,
    release,
    renew_holdout,
    seen_now,
    show,
    training_rows,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    renew_holdout(place, 0.0)
    return place


def promoted(home: Path, snapshot: str, reason: str) -> None:
    """A snapshot's candidate becomes generation 0."""
    given = {"digest": "d", "artifacts": {}, "reason": reason, "snapshot": snapshot}
    promote(home, "support", expected=None, **given)  # type: ignore[arg-type]


def test_each_thing_that_happens_is_told_once_in_a_line(home: Path, tmp_path: Path) -> None:
    add(home, [write(tmp_path / "old.jsonl", [row(100)])])
    seen = seen_now(home)
    assert news(home, seen) == ([], seen)
    add(home, [write(tmp_path / "a.jsonl", [*(row(number) for number in range(30)), b"no"])])
    lines, seen = news(home, seen)
    assert lines == ["taken in  a.jsonl: 30 new rows, 1 in quarantine"]
    first = freeze(home, champion=0)
    release(home, first.name, "rejected", reason="worse by 3.1 points\n(p = 0.01)")
    second = freeze(home)
    lines, seen = news(home, seen)
    assert lines == [
        f"started   retrain on default@{first.name}: 31 rows, against generation 0",
        f"started   retrain on default@{second.name}: 31 rows",
        f"rejected  the candidate of default@{first.name}: worse by 3.1 points (p = 0.01)",
    ]
    promoted(home, second.name, "better")
    lines, seen = news(home, seen)
    assert lines == ["promoted  support generation 0: better"]
    add(home, [write(tmp_path / "b.jsonl", [row(number) for number in range(40, 45)])])
    kept = json.dumps({"verdict": "inconclusive", "reasons": ["too few prompts", "p = 0.2"]})
    third = freeze(home)
    release(home, third.name, "inconclusive", reason=kept)
    lines, seen = news(home, seen)
    told = f"inconclusive the candidate of default@{third.name}: too few prompts; p = 0.2"
    assert lines[-1] == told
    assert news(home, seen) == ([], seen)


def test_a_home_without_a_ledger_has_no_news(tmp_path: Path) -> None:
    assert news(tmp_path, seen_now(tmp_path)) == ([], seen_now(tmp_path))


class Person(io.StringIO):
    def isatty(self) -> bool:
        return True


def erased(home: Path, *arguments: str) -> int:
    return exit_code_of(["prefs", "erase", *arguments, "--home", str(home)])


def test_erasing_shows_what_goes_and_asks(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(7)])])
    snapshot = freeze(home)
    promoted(home, snapshot.name, "r")
    source = str(tmp_path / "a.jsonl")
    assert erased(home, "--source", source) == RecipeError.exit_code, "nobody can be asked"
    asked = capsys.readouterr().err
    reached = erasable(home, source=source).rows
    assert len(reached) == 7 and reached[0][:12] in asked
    assert all(show(home, name)["state"] == "consumed" for name in reached)
    assert "The texts of 7 rows (" in asked and "and 2 more) and 0 ratings go for good" in asked
    assert "support generation 0 was trained on some of them and keeps what it learned." in asked
    assert "Give --yes to go on." in asked
    monkeypatch.setattr("sys.stdin", Person("n\n"))
    assert erased(home, "--source", source) == 130
    import pyarrow.parquet as pq

    names = pq.read_table(training_rows(home, "default", snapshot.name))["id"].to_pylist()
    assert {show(home, name)["state"] for name in names} == {"consumed"}
    monkeypatch.setattr("sys.stdin", Person("y\n"))
    assert erased(home, "--source", source) == 0
    assert {show(home, name)["state"] for name in names} == {"erased"}


def test_a_second_up_on_a_home_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALIGNFLOW_HOME", "ALIGNFLOW_RECIPE", "ALIGNFLOW_INBOX"):
        monkeypatch.setenv(name, "restored")  # `up` sets them for this process too
    monkeypatch.delenv("ALIGNFLOW_INBOX")
    home = tmp_path / "home"
    with held(home / "up" / "up.lock"):
        arguments = ["up", "--home", str(home), "--prefect-port", "0", "--mlflow-port", "0"]
        assert exit_code_of(arguments) == RecipeError.exit_code
    assert f"Another `alignflow up` serves {home}" in capsys.readouterr().err
