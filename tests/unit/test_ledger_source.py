"""`data.preferences: ledger:NAME` in a recipe, and `alignflow prefs` as a person types it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from ledger_cases import held_out_prompts, row, write

from alignflow.commands.cli import exit_code_of
from alignflow.data.stored import StoredRows
from alignflow.errors import DataError
from alignflow.ledger import add, freeze, renew_holdout
from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import Recipe
from alignflow.stages.events import EventWriter


def recipe_on(source: str, sft: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "on-ledger",
            "base_model": "builtin:freight-base",
            "data": {"preferences": source, "sft": str(sft)},
            "sft": {},
            "reward": None,
            "dpo": {},
            "method": "dpo",
        }
    )


@pytest.mark.slow
def test_a_recipe_prepares_the_rows_of_the_ledger_and_never_its_hold_out(tmp_path: Path) -> None:
    from alignflow.data import prepare

    home = tmp_path / "home"
    renew_holdout(home, 0.3, salt="s")
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(60)])])
    held = held_out_prompts(home)
    demonstrations = [{"prompt": f"Question  {n}", "completion": "x"} for n in range(60)]
    sft = write(tmp_path / "sft.jsonl", demonstrations)
    spec = stage_spec(recipe_on("ledger:default", sft), "prepare", home, {})
    work = tmp_path / "work"
    result = prepare.run(spec, work, EventWriter(tmp_path / "events.jsonl", 1))
    accounts = result.details["rows"]
    assert accounts["preferences"]["read"] == 60 - len(held) > 0
    assert accounts["preferences"]["dropped"] == {}
    assert (
        accounts["sft"]["dropped"] == {"evaluation_prompt": len(held)} != {"evaluation_prompt": 0}
    )
    trained = [row["prompt"] for row in StoredRows.of(work / "output" / "sft" / "train")]
    assert not any(
        f"Question  {text.split()[-1]}\n" in prompt for text in held for prompt in trained
    )


def test_new_rows_change_the_key_of_a_set_and_not_that_of_a_snapshot(tmp_path: Path) -> None:
    home = tmp_path / "home"
    renew_holdout(home, 0.0)
    sft = write(tmp_path / "sft.jsonl", [{"prompt": "a", "completion": "b"}])

    def key(source: str, place: Path = home) -> str:
        return stage_spec(recipe_on(source, sft), "prepare", place, {}).key

    with pytest.raises(DataError, match="There is no ledger"):
        key("ledger:default", tmp_path / "elsewhere")
    add(home, [write(tmp_path / "a.jsonl", [row(number) for number in range(5)])])
    waiting = key("ledger:default")
    frozen = f"ledger:default@{freeze(home).name}"
    before = key(frozen)
    with pytest.raises(DataError, match="no rows wait"):
        key("ledger:default")
    add(home, [write(tmp_path / "b.jsonl", [row(number) for number in range(5, 9)])])
    assert key(frozen) == before and key("ledger:default") != waiting


def prefs(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert exit_code_of(["prefs", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_commands_tell_what_the_issue_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = ("--home", tmp_path / "home")
    renew_holdout(tmp_path / "home", 0.0)
    path = write(tmp_path / "a.jsonl", [row(1), row(2), row(1), b"no"])
    added = prefs(capsys, "add", path, *home)
    assert added == {
        "files": 1,
        "read": 4,
        "accepted": 2,
        "duplicates": 1,
        "contradictory": 0,
        "held_out": 0,
        "unpaired": 0,
        "quarantined": {"json:Expecting value": 1},
        "refused_files": [],
    }
    line = json.dumps(row(3)).encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line)))
    assert prefs(capsys, "add", "-", *home)["accepted"] == 1
    told = prefs(capsys, "status", *home)
    wanted = ("rows", "waiting", "reserved", "consumed", "held_out", "quarantined", "contradictory")
    assert [told[name] for name in wanted] == [3, 3, 0, 0, 0, 1, 0]
    assert (told["snapshots"], told["champion"]) == ([], None)
    frozen = prefs(capsys, "freeze", *home)
    assert frozen["rows"] == 3
    target = tmp_path / "out.parquet"
    prefs(capsys, "export", frozen["name"], "--output", target, *home)
    name = pq.read_table(target)["id"].to_pylist()[0]
    assert prefs(capsys, "show", name, *home)["state"] == "reserved"
    assert prefs(capsys, "quarantine", *home)[0]["raw"] == "no\\n"
    withdrawn = prefs(capsys, "withdraw", frozen["name"], "--reason", "wrong recipe", *home)
    assert withdrawn == {"snapshot": frozen["name"], "withdrawn": "wrong recipe"}
    assert prefs(capsys, "status", *home)["new"] == 3
    assert prefs(capsys, "erase", name, "--yes", *home)["erased"] == [name]
    assert prefs(capsys, "holdout", "--share", 0.5, *home)["share"] == 0.5
    fresh = write(tmp_path / "b.jsonl", [row(number) for number in range(100, 200)])
    assert 25 <= prefs(capsys, "add", fresh, *home)["held_out"] <= 75


def test_people_read_what_was_refused_by_reason_with_its_first_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*(row(n) for n in range(9)), b"no\x1b[31m", b"[1]", b'{"prompt": "\\u001b[2J"}']
    path = write(tmp_path / "a.jsonl", lines)
    assert exit_code_of(["prefs", "add", str(path), "--home", str(tmp_path / "home")]) == 0
    out = capsys.readouterr().out
    assert "3 quarantined" in out and f"1 type:row: {path} at " in out and "\x1b[2J" not in out
    assert exit_code_of(["prefs", "status", "--home", str(tmp_path / "home")]) == 0
    assert "9 rows:" in capsys.readouterr().out
    assert exit_code_of(["prefs", "status", "--home", str(tmp_path / "absent")]) == 65
    assert "There is no ledger" in capsys.readouterr().err
