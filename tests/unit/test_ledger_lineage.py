"""Freezing, verdicts, deletion: on SQLite and on a Postgres server of our own."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledger_cases import content, new_database, postgres_server, row, swapped, write

from alignflow.data.feedback import pairs_of
from alignflow.data.stored import StoredRows
from alignflow.errors import DataError, RecipeError
from alignflow.ledger import (
    PromotionRace,
    add,
    champion,
    erase,
    freeze,
    lineage,
    mark_dropped,
    mark_sent,
    pending_events,
    promote,
    release,
    renew_holdout,
    rollback,
    set_state,
    set_threshold,
    show,
    status,
    training_rows,
)
from alignflow.ledger.store import file_system_of, opened
from alignflow.stages.artifacts import publish, verify, work_directory
from alignflow.stages.events import read_events
from alignflow.stages.spec import StageResult, StageSpec


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose ledger holds nothing out."""
    monkeypatch.delenv("ALIGNFLOW_LEDGER_URL", raising=False)
    if request.param == "postgres":
        address = request.getfixturevalue("server")
        name = "l" + str(abs(hash(request.node.name)))
        monkeypatch.setenv("ALIGNFLOW_LEDGER_URL", new_database(address, name))
    renew_holdout(tmp_path / "home", 0.0)
    return tmp_path / "home"


def fill(home: Path, first: int, last: int, into: str = "default") -> None:
    path = home.parent / f"{into}-{first}-{last}.jsonl"
    add(home, [write(path, [row(number) for number in range(first, last)])], into)


def counts(home: Path) -> tuple[int, int, int]:
    found = status(home)
    return found["waiting"], found["reserved"], found["consumed"]


def promoted(home: Path, expected: int | None, snapshot: str | None = None, **more: Any) -> Any:
    return promote(
        home,
        "m",
        expected=expected,
        digest="d",
        artifacts={"merge": "/a"},
        reason="better",
        snapshot=snapshot,
        **more,
    )


def test_a_promotion_consumes_and_a_rejection_gives_back(home: Path) -> None:
    fill(home, 0, 10)
    one = freeze(home, recipe="the recipe", champion=None)
    assert counts(home) == (0, 10, 0)
    fill(home, 10, 14)
    assert freeze(home) == one, "an undecided snapshot is resumed"
    assert set_state(home, "default", "m")[:5] == (4, 4, one.name, "the recipe", None)
    release(home, one.name, "rejected", reason="worse")
    assert counts(home) == (14, 0, 0)
    state = set_state(home, "default", "m")
    assert (state.waiting, state.new, state.undecided, state.looks) == (14, 4, None, 1)

    two = freeze(home)
    assert two.rows == 14 and two.name.startswith("v2-") and two.digest != one.digest
    assert promoted(home, None, two.name).generation == 0
    assert counts(home) == (0, 0, 14)
    with pytest.raises(DataError, match="is promoted since"):
        release(home, two.name, "rejected")
    with pytest.raises(DataError, match="no rows wait"):
        freeze(home)


def test_the_loser_of_a_race_changes_nothing(home: Path) -> None:
    fill(home, 0, 5)
    snapshot = freeze(home).name
    assert promoted(home, None).generation == 0
    with pytest.raises(PromotionRace, match="is generation 0"):
        promoted(home, None, snapshot)
    assert counts(home) == (0, 5, 0)
    assert promoted(home, 0, snapshot).generation == 1
    assert counts(home) == (0, 0, 5)


def test_a_rollback_gives_back_the_rows_of_what_it_undoes(home: Path) -> None:
    for generation, first in enumerate((0, 10, 20)):
        fill(home, first, first + 10)
        promoted(home, generation - 1 if generation else None, freeze(home).name)
    assert counts(home) == (0, 0, 30)
    assert rollback(home, "m", 0, "bad answers").generation == 0
    assert counts(home) == (20, 0, 10)
    assert set_state(home, "default", "m").new == 0, "a rollback calls for no retrain"
    assert [entry.generation for entry in lineage(home, "m")] == [0]
    with pytest.raises(RecipeError, match="its lineage is 0"):
        rollback(home, "m", 2, "")
    assert promoted(home, 0, freeze(home).name).generation == 3
    head = champion(home, "m")
    assert head is not None and (head.generation, head.artifacts) == (3, {"merge": "/a"})


def test_consumed_rows_are_mixed_in_again_and_counted_apart(home: Path) -> None:
    fill(home, 0, 20)
    promoted(home, None, freeze(home).name)
    fill(home, 20, 28)
    asked: list[tuple[int, int]] = []

    def replay(new: int, consumed: int) -> int:
        asked.append((new, consumed))
        return 2

    frozen = freeze(home, replay=replay)
    assert asked == [(8, 20)] and (frozen.rows, frozen.replayed) == (10, 2)
    assert sum(pq.read_table(frozen.path)["replayed"].to_pylist()) == 2
    assert counts(home) == (0, 8, 20)
    release(home, frozen.name, "inconclusive")
    assert counts(home) == (8, 0, 20)


@pytest.mark.slow
def test_two_processes_that_add_the_same_file_at_once_count_each_row_once(home: Path) -> None:
    path = write(home.parent / "a.jsonl", [row(number) for number in range(200)])
    code = (
        "import sys; from pathlib import Path; from alignflow.ledger import ingest; "
        "ingest.BATCH_LINES = 10; "
        "print(ingest.add(Path(sys.argv[1]), [Path(sys.argv[2])]).counts.accepted)"
    )
    command = [sys.executable, "-c", code, str(home), str(path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    accepted = [int(process.communicate(timeout=60)[0]) for process in both]
    assert sum(accepted) == 200 == status(home)["rows"]


def test_a_set_belongs_to_one_lineage(home: Path) -> None:
    fill(home, 0, 5)
    promoted(home, None, freeze(home).name)
    fill(home, 5, 10)
    snapshot = freeze(home).name
    with pytest.raises(DataError, match="belongs to the lineage of m"):
        promote(
            home, "other", expected=None, digest="d", artifacts={}, reason="", snapshot=snapshot
        )


def test_the_event_is_written_once_a_verdict_when_the_threshold_is_crossed(home: Path) -> None:
    set_threshold(home, "default", 10)
    fill(home, 0, 9)
    assert pending_events(home) == []
    fill(home, 9, 10)
    fill(home, 10, 30)
    (event,) = pending_events(home)
    assert event.event == "alignflow.preferences.ready" and event.payload["set"] == "default"
    mark_sent(home, event.key)
    frozen = freeze(home)
    fill(home, 30, 45)
    assert pending_events(home) == []
    release(home, frozen.name, "rejected")
    (event,) = pending_events(home)
    assert event.payload["judged"] == 30


def test_a_snapshot_is_the_same_bytes_whenever_it_is_written(home: Path) -> None:
    fill(home, 0, 30)
    frozen = freeze(home)
    before = frozen.path.read_bytes()
    frozen.path.unlink()
    assert training_rows(home, "default", frozen.name).read_bytes() == before
    frozen.path.write_bytes(before[:100])
    assert training_rows(home, "default", frozen.name).read_bytes() == before
    with pytest.raises(DataError, match=f"it has: {frozen.name}"):
        training_rows(home, "default", "v9-0")


def test_training_reads_the_pairs_that_were_given(home: Path) -> None:
    fill(home, 0, 5)
    path = training_rows(home, "default")
    found = pq.read_table(path).to_pylist()
    assert {pairs_of(entry)[0].chosen[0]["content"] for entry in found} == {
        f"a good answer to {number}" for number in range(5)
    }
    assert [entry["id"] for entry in found] == sorted(content(home))


def test_dropped_contradictory_and_erased_rows_do_not_count(home: Path) -> None:
    pair = row(100)
    add(home, [write(home.parent / "a.jsonl", [row(1), row(2), row(3), pair, swapped(pair)])])
    ids = sorted(content(home))
    good = [name for name in ids if show(home, name)["state"] == "waiting"]
    mark_dropped(home, "default", {good[0]: "too_long"})
    erase(home, row_id=good[1], reason="asked")
    assert set_state(home, "default", "m")[:2] == (1, 1)
    assert status(home)["rows"] == 4 and freeze(home).rows == 1


def prepared_with(home: Path, *prompts: str) -> Path:
    """A finished artifact of `prepare` with these rows; the first is also its result's sample."""
    from alignflow.data.stored import write_shard

    spec = StageSpec(stage="prepare", home=str(home), params={}, seed=0)
    output = work_directory(home, "prepare", spec.key) / "output"
    texts = [
        {"prompt": text, "prompt_ids": [n, n], "chosen": "c"} for n, text in enumerate(prompts)
    ]
    write_shard(output / "preferences" / "train" / "00000.arrow", texts, [*texts[0]])
    details = {"sample": prompts[0].removeprefix("user: ").strip()}
    return publish(spec, StageResult(details=details), 0.0, 1).directory


def test_erasing_leaves_the_id_and_no_text_anywhere(home: Path) -> None:
    secret = "my name is Erasmus Krankenhaus"
    hidden = row(1, prompt=f"hello, {secret}", source="desk", annotator="ann")
    bad = {"prompt": f"hello, {secret}", "chosen": "x", "rejected": "x"}
    add(home, [write(home.parent / "a.jsonl", [hidden, row(2), bad])])
    frozen = freeze(home)
    promoted(home, None, frozen.name)
    report = home / "runs" / "r" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"sample": f"hello, {secret}", "n": 1}))
    report.with_suffix(".html").write_text(f"<p>hello, {secret}</p>")
    prepared = prepared_with(home, f"user: hello, {secret}\n", "user: question 2\n")
    lines = [row(2), hidden, row(3)]
    write(home / "inbox" / "done" / "a.jsonl", lines)
    (home / "inbox" / "done" / "b.jsonl.gz").write_bytes(
        gzip.compress(write(home.parent / "b.jsonl", lines).read_bytes())
    )
    table = pa.Table.from_pylist([{"prompt": [{"role": "user", "content": f"hello, {secret}"}]}])
    pq.write_table(table, home / "inbox" / "done" / "c.parquet")
    work = home / "work" / "dpo" / "k"
    work.mkdir(parents=True)
    (work / "events.jsonl").write_text(
        json.dumps({"kind": "message", "text": f"of hello, {secret}"})
    )

    done = erase(home, source="desk", reason="asked")
    assert len(done.erased) == 1 and done.quarantined == 1
    assert [(entry["model"], entry["generation"]) for entry in done.models] == [("m", 0)]
    for path in home.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    for path in (home / "inbox").rglob("*.gz"):
        assert secret.encode() not in gzip.decompress(path.read_bytes())
    assert len((home / "inbox" / "done" / "a.jsonl").read_text().splitlines()) == 2
    assert verify(prepared) and verify(prepared).result.details == {"sample": "[erased]"}
    left = StoredRows.of(prepared / "preferences" / "train")
    assert [entry["prompt_ids"] for entry in left] == [[1, 1]], "token ids are texts too"
    assert read_events(work / "events.jsonl")[0]["text"] == "of [erased]"
    assert pq.read_table(frozen.path).num_rows == 1
    assert training_rows(home, "default", frozen.name) == frozen.path
    life = show(home, done.erased[0])
    assert (life["state"], life["erased"], life["prompt"]) == ("erased", "asked", None)
    assert add(home, [write(home.parent / "b.jsonl", [hidden])]).counts.duplicates == 1
    assert show(home, done.erased[0])["prompt"] is None
    with pytest.raises(DataError, match="came from 'nobody'"):
        erase(home, source="nobody", reason="")


def test_a_row_can_tell_its_life(home: Path) -> None:
    add(home, [write(home.parent / "a.jsonl", [row(1, annotator="ann", model="m0")])])
    frozen = freeze(home)
    promoted(home, None, frozen.name)
    (name,) = content(home)
    life = show(home, name[:10])
    assert life["state"] == "consumed" and life["seen"][0]["annotator"] == "ann"
    assert life["snapshots"] == [{"name": frozen.name, "state": "promoted", "replayed": False}]
    assert life["models"][0]["generation"] == 0
    with pytest.raises(DataError, match="no row in the ledger"):
        show(home, "0" * 64)


def test_sqlite_flushes_every_commit_and_keeps_the_file_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALIGNFLOW_LEDGER_URL", raising=False)
    with opened(tmp_path / "home") as engine, engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    assert (tmp_path / "home" / "ledger.db").stat().st_mode & 0o077 == 0
    assert file_system_of(Path("/proc")) == "proc"
    assert sqlite3.sqlite_version_info >= (3, 35)


def test_another_kind_of_database_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_LEDGER_URL", "mysql://x")
    with pytest.raises(DataError, match="names a 'mysql' database"):
        status(tmp_path)
    monkeypatch.setenv("ALIGNFLOW_LEDGER_URL", "postgresql://nobody:secret@127.0.0.1:1/x")
    with pytest.raises(DataError) as caught:
        status(tmp_path)
    assert "secret" not in str(caught.value)
