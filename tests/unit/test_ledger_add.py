from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from ledger_cases import content, held_out_prompts, row, swapped, write

from alignflow.errors import DataError, RecipeError
from alignflow.ledger import add, ingest, quarantined, renew_holdout, show, status

GOOD = [row(number) for number in range(40)]


def added(home: Path, *sources: Path, **options: Any) -> dict[str, Any]:
    return add(home, list(sources), **options).as_json()


BAD_LINES = [
    (b'{"prompt": "x", "chosen": "y"', "json:Expecting ',' delimiter"),
    (b"<html>502</html>", "json:Expecting value"),
    (b'"a string"', "type:row"),
    (b'{"prompt": "x\xe9", "chosen": "a", "rejected": "b"}', "utf8"),
    (b'{"prompt": "q", "chosen": "a", "chosen": "evil", "rejected": "b"}', "duplicate_key"),
    (b'{"prompt": "q", "chosen": "a", "rejected": "b", "x": NaN}', "non_finite"),
    (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
    (b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}", "too_deep"),
    (b'{"x": ' + b"1" * 5000 + b"}", "json:ValueError"),
    (b'{"prompt": "' + b"x" * 1_100_000 + b'"}', "line_too_long"),
    (b'{"prompt": "a\0"}', "json:Invalid control character at"),
    (b'{"prompt": "a\\u0000", "chosen": "a", "rejected": "b"}', "nul"),
    (b'{"prompt": "a\\ud800", "chosen": "a", "rejected": "b"}', "surrogate"),
    (b'{"prompt": "q", "chosen": "a", "rejected": "a"}', "chosen_equals_rejected"),
    (b'{"prompt": null, "chosen": "a", "rejected": "b"}', "missing:prompt"),
    (b'{"prompt": "q", "chosen": 1, "rejected": 2}', "type:chosen:int"),
]


def test_each_bad_line_goes_to_quarantine_with_its_reason_and_no_neighbour_is_lost(
    tmp_path: Path,
) -> None:
    lines: list[Any] = []
    for number, (line, _) in enumerate(BAD_LINES):
        lines += [line, row(number), row(100 + number)]
    path = write(tmp_path / "a.jsonl", lines)
    result = added(tmp_path / "home", path)
    assert result["accepted"] == 2 * len(BAD_LINES)
    assert sum(result["quarantined"].values()) == len(BAD_LINES)
    assert result["read"] == 3 * len(BAD_LINES)
    found = sorted(quarantined(tmp_path / "home"), key=lambda entry: entry["offset"])
    assert [entry["reason"] for entry in found] == [reason for _, reason in BAD_LINES]
    content = path.read_bytes()
    for entry, (line, _) in zip(found, BAD_LINES, strict=True):
        assert content[entry["offset"] :].startswith(line)
        assert entry["raw"].isprintable()


def test_a_byte_order_mark_and_blank_lines_and_a_missing_last_newline_are_fine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    text = json.dumps(row(1)) + "\r\n\n  \n" + json.dumps(row(2))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    result = added(tmp_path / "home", path)
    assert (result["accepted"], result["quarantined"]) == (2, {})


HALVES = [
    {"prompt": prompt, "response": answer, "helpfulness": score, "verbosity": 2}
    for prompt, answer, score in (
        *(("q", "a", 1), ("q", "b", 4), ("r", "one", 2), ("r", "two", 2), ("alone", "x", 3)),
        *(("s", "a", 3), ("s", "b", 0), ("s", "c", 4)),
    )
]


@pytest.mark.parametrize("lines_of_a_batch", [1, 2, 3, 5, 8000])
def test_two_neighbours_of_helpsteer_are_a_pair_wherever_a_batch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines_of_a_batch: int
) -> None:
    monkeypatch.setattr(ingest, "BATCH_LINES", lines_of_a_batch)
    path = write(tmp_path / "a.jsonl", [HALVES[0], b"", *HALVES[1:], *GOOD[:3], HALVES[5]])
    result = added(tmp_path / "home", path)
    assert (result["accepted"], result["read"]) == (5, 9)
    assert result["quarantined"] == {"no_neighbour": 3, "no_preference": 1}
    said = {pair[1:3] for pair in content(tmp_path / "home").values()}
    good = {(pair["chosen"], pair["rejected"]) for pair in GOOD[:3]}
    assert said == {("b", "a"), ("a", "b"), *good}
    (tmp_path / "b.json").write_text(json.dumps(HALVES[:2]))
    assert added(tmp_path / "home", tmp_path / "b.json")["duplicates"] == 1


def test_the_same_rows_again_are_duplicates_from_any_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    home, path = tmp_path / "home", write(tmp_path / "a.jsonl", GOOD)
    assert added(home, path)["accepted"] == 40
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "c.parquet")
    for again in (path, tmp_path / "b.jsonl.gz", tmp_path / "c.parquet"):
        result = added(home, again)
        assert (result["read"], result["accepted"], result["duplicates"]) == (40, 0, 40), again
    assert status(home)["rows"] == 40
    seen = show(home, _an_id(home))["seen"]
    assert [Path(entry["file"]).name for entry in seen] == ["a.jsonl", "b.jsonl.gz", "c.parquet"]


def _an_id(home: Path) -> str:
    from ledger_cases import content

    return sorted(content(home))[0]


def test_sets_are_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    added(tmp_path / "home", path)
    assert added(tmp_path / "home", path, into="other")["accepted"] == 40
    assert status(tmp_path / "home")["rows"] == 80
    assert status(tmp_path / "home", "other")["rows"] == 40
    with pytest.raises(RecipeError, match="cannot name a preference set"):
        added(tmp_path / "home", path, into="../x")
    with pytest.raises(DataError, match="it has: default, other"):
        status(tmp_path / "home", "third")


def test_a_folder_is_read_whole_and_what_is_refused_is_moved_aside(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    write(inbox / "a.jsonl", GOOD[:10])
    write(inbox / "sub" / "b.jsonl", GOOD[10:20])
    write(inbox / ".hidden.jsonl", GOOD[20:])
    write(inbox / "c.jsonl.tmp", GOOD[20:])
    write(inbox / "bad.jsonl", [b"no"] * 6 + GOOD[30:35])
    (inbox / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-10])
    (inbox / "not.parquet").write_bytes(b"PAR1")
    (inbox / "empty.jsonl").write_bytes(b"\n")
    (inbox / "link.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(inbox / "pipe.jsonl")
    result = added(tmp_path / "home", inbox)
    assert (result["files"], result["accepted"]) == (2, 20)
    refused = {Path(entry["file"]).name: entry["reason"] for entry in result["refused_files"]}
    assert refused == {
        "bad.jsonl": "mostly_bad",
        "cut.jsonl.gz": "gzip",
        "not.parquet": "parquet",
        "empty.jsonl": "empty",
        "link.jsonl": "symlink",
        "pipe.jsonl": "not_a_file",
    }
    assert {entry.name for entry in (inbox / "rejected").iterdir()} == set(refused)
    assert status(tmp_path / "home")["quarantined"] == 0
    assert added(tmp_path / "home", inbox)["refused_files"] == []


def test_columns_of_other_names_are_refused_with_what_would_work(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "the better one": "a", "worse": "b"} for n in range(3)]
    path = write(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in rows])
    (refused,) = added(tmp_path / "home", path)["refused_files"]
    command = refused["message"].partition("`")[2].partition("`")[0]
    assert (
        command
        == "--column prompt=question --column 'chosen=the better one' --column rejected=worse"
    )


def test_a_file_named_by_hand_is_refused_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xlsx", GOOD)
    result = added(tmp_path / "home", path)
    assert result["refused_files"][0]["reason"] == "unknown_kind" and path.exists()
    with pytest.raises(DataError, match="no such file or folder"):
        added(tmp_path / "home", tmp_path / "absent.jsonl")


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 40_000_000))
    result = added(tmp_path / "home", tmp_path / "a.jsonl.gz")
    assert result["refused_files"][0]["reason"] == "gzip_bomb"


def test_contradictory_pairs_go_by_majority_and_a_tie_leaves_both_out(tmp_path: Path) -> None:
    home, pair = tmp_path / "home", row(1, annotator="ann")
    renew_holdout(home, 0.0)
    result = added(home, write(tmp_path / "a.jsonl", [pair, swapped(row(1, annotator="bob"))]))
    assert (result["accepted"], result["contradictory"]) == (2, 2)
    assert (status(home)["contradictory"], status(home)["waiting"]) == (2, 0)
    result = added(home, write(tmp_path / "b.jsonl", [row(1, annotator="cyd"), row(2)]))
    assert (result["accepted"], result["duplicates"], result["contradictory"]) == (1, 1, 0)
    assert (status(home)["contradictory"], status(home)["waiting"]) == (1, 2)


def test_repeating_a_row_without_a_name_is_no_second_vote(tmp_path: Path) -> None:
    home = tmp_path / "home"
    renew_holdout(home, 0.0)
    added(home, write(tmp_path / "a.jsonl", [row(1), row(1), row(1), swapped(row(1))]))
    assert status(home)["contradictory"] == 2


def test_a_prompt_of_the_hold_out_stays_there_in_any_later_form(tmp_path: Path) -> None:
    home = tmp_path / "home"
    added(home, write(tmp_path / "a.jsonl", [row(number) for number in range(300)]))
    held = held_out_prompts(home)
    assert 3 <= len(held) <= 40 and status(home)["held_out"] == len(held)
    renew_holdout(home, 0.0)
    later = [
        {"prompt": f"  {text.upper()} ", "chosen": "new answer", "rejected": "newer"}
        for text in sorted(held)
    ]
    assert added(home, write(tmp_path / "b.jsonl", later))["held_out"] == len(held)
    renew_holdout(home, 0.5, salt="s")
    assert held_out_prompts(home) == held
    fresh = [row(1000 + number) for number in range(100)]
    assert 25 <= added(home, write(tmp_path / "c.jsonl", fresh))["held_out"] <= 75
    assert held_out_prompts(tmp_path / "nowhere") == set()


def test_ratings_become_pairs_when_opposite_ones_meet(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def rating(text: str, label: bool) -> dict[str, Any]:
        return {"prompt": "q", "completion": text, "label": label}

    result = added(home, write(tmp_path / "a.jsonl", [rating("a", True), rating("b", True)]))
    assert (result["read"], result["accepted"], result["unpaired"]) == (0, 0, 2)
    result = added(home, write(tmp_path / "b.jsonl", [rating("c", False), rating("a", True)]))
    assert (result["read"], result["accepted"], result["duplicates"]) == (3, 2, 1)
    assert status(home)["rows"] == 2


def test_a_newer_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    import sqlite3

    home = tmp_path / "home"
    added(home, write(tmp_path / "a.jsonl", GOOD))
    connection = sqlite3.connect(home / "ledger.db")
    connection.execute("INSERT INTO schema_version VALUES (99)")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="schema version 99"):
        status(home)


def test_migrations_bring_an_old_ledger_up_one_step_after_the_other(tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    from alignflow.ledger.migrations import MIGRATIONS, current_version, migrate

    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.begin() as connection:
        migrate(connection, "x")

    def add_column(connection: Any) -> None:
        connection.exec_driver_sql("ALTER TABLE sets ADD COLUMN note TEXT")

    with engine.begin() as connection:
        migrate(connection, "x", (*MIGRATIONS, add_column))
        assert current_version(connection) == len(MIGRATIONS) + 1
        connection.exec_driver_sql("SELECT note FROM sets")
    engine.dispose()


def test_an_absent_or_damaged_ledger_is_said_and_never_made_in_silence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no ledger"):
        status(tmp_path / "home")
    assert not (tmp_path / "home").exists()
    (tmp_path / "ledger.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="not a database"):
        status(tmp_path)


def test_many_ranked_responses_fit_one_batch(tmp_path: Path) -> None:
    ranked = [
        {"prompt": f"q{n}", "responses": [f"{n} {r}" for r in range(16)], "ranks": [*range(16)]}
        for n in range(150)
    ]
    result = added(tmp_path / "home", write(tmp_path / "a.jsonl", ranked))
    assert result["accepted"] == 150 * 120


def test_a_contradiction_between_two_files_of_one_call_counts_both(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", [row(1)])
    two = write(tmp_path / "b.jsonl", [swapped(row(1))])
    assert added(tmp_path / "home", one, two)["contradictory"] == 2


def test_a_file_name_that_is_no_text_is_only_a_label(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/x\xe9.jsonl")
    assert added(tmp_path / "home", write(Path(name), [row(1), b"no"]))["accepted"] == 1
    assert quarantined(tmp_path / "home")[0]["file"].endswith("x\\udce9.jsonl")
