"""Stretches of rows: made on all processors, continued after a kill, the same bytes either way."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignflow.builtin import base_model_directory
from alignflow.data import chunks
from alignflow.data.asked import Asked
from alignflow.data.chunks import Chunk, Done, Maker, Notes, chunks_of, made
from alignflow.data.file_rows import RawRow
from alignflow.data.plain_tokenizer import plain_encoder
from alignflow.data.rows import Rules
from alignflow.data.stored import StoredRows
from alignflow.files import hash_files
from alignflow.recipe import DataSource, ModelSource
from alignflow.stages import Prepared, RowAccount

SOURCE = DataSource(source="ledger:default")
COUNT = 23


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 4)


def maker(artifact: Path) -> Maker:
    model = ModelSource(source="builtin:freight-base")
    encoder = plain_encoder(base_model_directory("freight-base"), model, "all")
    return Maker(Rules(encoder, {}, 0.3, Asked.of([]), frozenset()), Prepared(artifact))


def pairs() -> Iterator[RawRow]:
    for n in range(COUNT):
        fields: dict[str, Any] = {"id": f"r{n}", "prompt": f"question {n}", "chosen": "a"}
        yield RawRow(f"a:{n}", fields | {"rejected": "a" if n % 5 == 0 else "b"})


def go(work: Path, rows: Iterable[RawRow], make: Any = None, workers: int = 1) -> list[Done]:
    artifact = work / "output"
    stretches = chunks_of("preferences", 0, SOURCE, rows)
    found = made(stretches, make or maker(artifact), Notes(work, artifact), workers)
    return [done for _, done in found]


def test_rows_are_the_same_on_one_processor_and_on_three(tmp_path: Path) -> None:
    told = []
    for count in (1, 3):
        work = tmp_path / str(count)
        work.mkdir()
        told.append((go(work, pairs(), workers=count), hash_files(work / "output")))
    assert told[0] == told[1]
    done = told[0][0]
    total = RowAccount.total(one.rows for one in done)
    assert (total.read, total.dropped) == (COUNT, {"equal_responses": 5}) and total.balanced
    assert {name for one in done for name in one.dropped_ids} == {f"r{n}" for n in range(0, 23, 5)}
    files = Prepared(tmp_path / "1" / "output")
    rows = {name: StoredRows.of(files.rows("preferences", name)) for name in ("train", "held_out")}
    assert len(rows["train"]) == total.trained and len(rows["held_out"]) == total.held_out > 0
    prompts = [row["prompt"] for row in rows["train"]]
    assert prompts == [rows["train"][at]["prompt"] for at in range(len(prompts))]
    numbers = [int(re.findall(r"question (\d+)", prompt)[0]) for prompt in prompts]
    assert numbers == sorted(numbers)


def test_what_was_made_before_a_kill_is_not_made_again(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for work in (straight, killed):
        work.mkdir()
    go(straight, pairs())

    def dies_in_the_fourth(chunk: Chunk) -> Done:
        done = maker(killed / "output")(chunk)  # its shards are there, its note is not
        if chunk.number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    child = os.fork()
    if child == 0:
        go(killed, pairs(), dies_in_the_fourth)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with (killed / "chunks.jsonl").open("ab") as file:
        file.write(b'{"part": "prefer')  # a torn note
    again: list[int] = []

    def counting(chunk: Chunk) -> Done:
        again.append(chunk.number)
        return maker(killed / "output")(chunk)

    go(killed, pairs(), counting)
    assert again == [3, 4, 5]
    assert hash_files(killed / "output") == hash_files(straight / "output")
    (killed / "output/preferences/train/00001.arrow").write_bytes(b"damaged")
    again.clear()
    go(killed, pairs(), counting)
    assert again == [1] and hash_files(killed / "output") == hash_files(straight / "output")


def test_no_more_is_read_ahead_than_there_are_processors(tmp_path: Path) -> None:
    read = 0

    def counted() -> Iterator[RawRow]:
        nonlocal read
        for row in pairs():
            read += 1
            yield row

    artifact = tmp_path / "output"
    stretches = chunks_of("preferences", 0, SOURCE, counted())
    found = made(stretches, maker(artifact), Notes(tmp_path, artifact), workers=2)
    for taken, _ in enumerate(found, 1):
        assert read <= 4 * (taken + 2)


def test_a_shard_is_a_data_set_of_the_datasets_library(tmp_path: Path) -> None:
    from datasets import Dataset

    go(tmp_path, pairs())
    shard = tmp_path / "output/preferences/train/00000.arrow"
    opened = Dataset.from_file(str(shard))
    assert opened.to_list() == [*StoredRows.of(shard.parent)][: len(opened)]


def test_an_error_of_a_child_is_the_stage_s(tmp_path: Path) -> None:
    from alignflow.errors import DataError

    def refuses(chunk: Chunk) -> Done:
        raise DataError(f"no template for {chunk.part}")

    with pytest.raises(DataError, match="no template for preferences"):
        go(tmp_path, pairs(), refuses, workers=2)
