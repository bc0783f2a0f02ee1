"""Files of every kind, and what is wrong with those that are none."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from ledger_cases import row, write

from alignflow.commands.prefs import prefs
from alignflow.data.demonstrations import prompt_to_answer
from alignflow.data.feedback import preferences_of
from alignflow.data.forms.form import parsed
from alignflow.data.reading import read_source
from alignflow.errors import DataError
from alignflow.ledger import (
    Told,
    add,
    holdout_prompts_file,
    quarantined,
    renew_holdout,
    training_rows,
)
from alignflow.ledger.erasing_files import erase_from_files, words_of
from alignflow.recipe import DataSource, matching_files

TOOLS = [{"type": "function", "function": {"name": "f"}}]
ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "ü; d"}]


def fields(source: Path | str, **options: Any) -> list[Any]:
    return [row.fields for row in read_source(DataSource(source=str(source), **options), seed=0)]


def call(number: int) -> list[dict[str, Any]]:
    """A response that is a call."""
    function = {"name": "f", "arguments": {"n": number}}
    calls = [{"type": "function", "function": function}]
    return [{"role": "assistant", "content": "", "tool_calls": calls}]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_read_whatever_parts_its_cells(tmp_path: Path, separator: str) -> None:
    path = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "completion"], delimiter=separator)
        table.writeheader()
        table.writerows(ROWS)
    assert fields(path) == ROWS


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f"prompt,completion\nq,{long}\n")
    assert fields(tmp_path / "a.csv") == [{"prompt": "q", "completion": long}]


def test_a_line_of_text_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\r\n")
    assert fields(tmp_path / "a.txt") == [{"text": "one"}, {"text": "two"}]


def test_lines_of_json_may_be_named_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert fields(tmp_path / "a.json") == ROWS
    (tmp_path / "b.json").write_text(json.dumps(ROWS[0]))
    assert fields(tmp_path / "b.json") == ROWS[:1]


def test_what_datasets_saves_is_read_by_its_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    test = [{"prompt": "e", "completion": "f"}]
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(test)}).save_to_disk(
        tmp_path / "both"
    )
    assert fields(tmp_path / "both") == ROWS
    assert fields(tmp_path / "both", split="test") == test
    assert fields(tmp_path / "both" / "train") == ROWS
    (file,) = matching_files(str(tmp_path / "both" / "train"))
    assert file.suffix == ".arrow" and fields(file) == ROWS
    with pytest.raises(DataError, match="has no rows"):
        fields(tmp_path / "both", split="validation")


def test_a_folder_is_its_files_or_those_named_for_the_split(tmp_path: Path) -> None:
    write(tmp_path / "all" / "a.jsonl", ROWS[:1])
    write(tmp_path / "all" / "deep" / "b.jsonl", ROWS[1:])
    write(tmp_path / "all" / ".hidden" / "c.jsonl", ROWS)
    (tmp_path / "all" / "README.md").write_text("x")
    assert fields(tmp_path / "all") == ROWS
    write(tmp_path / "hub" / "data" / "train-00000-of-00001.jsonl", ROWS[:1])
    write(tmp_path / "hub" / "data" / "test-00000-of-00001.jsonl", ROWS[1:])
    assert fields(tmp_path / "hub") == ROWS[:1]
    assert fields(tmp_path / "hub", split="test") == ROWS[1:]


def test_nulls_that_a_schema_adds_are_left_out_within_a_cell(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"tools": [{"a": 1}], "text": None}, {"tools": [{"b": 2}], "text": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert fields(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json.dumps(ROWS[0]).encode("utf-16"), "is UTF-16. Save it as UTF-8"),
        ("a.csv", "prompt,completion\n".encode("utf-16"), "is UTF-16. Save it as UTF-8"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
            "is a pointer of Git LFS.*git lfs pull",
        ),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
            "is a pointer of Git LFS",
        ),
        ("a.jsonl", json.dumps(ROWS, indent=1).encode(), "is one JSON array.*Name it .json"),
        ("a.jsonl", json.dumps(ROWS[0], indent=1).encode(), "is one JSON object.*Name it .json"),
        ("a.json", b'{"data": [\n]}', "holds a dict with data, not an array of objects"),
        ("a.json", b"prompt: a\nb: c\n", "is not JSON"),
        ("a.csv", b"prompt,completion\nq,\xe9\n", "byte 20 is not UTF-8"),
        ("a.arrow", b"PAR1", "is not Arrow"),
        ("a.xlsx", b"", "unknown kind of file"),
    ],
)
def test_a_file_that_holds_no_rows_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        fields(tmp_path / name)


def test_a_data_set_is_pointed_at_as_llama_factory_lists_it(tmp_path: Path) -> None:
    info = {
        "mine": {"file_name": "a.json", "columns": {"prompt": "ask", "response": "say"}},
        "chat": {
            "file_name": "b.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "kto_tag": "good"},
            "tags": {
                "role_tag": "who",
                "content_tag": "what",
                "user_tag": "me",
                "assistant_tag": "bot",
            },
        },
        "hub": {"hf_hub_url": "x/y"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "a.json").write_text(json.dumps([{"ask": "q", "say": "a"}]))
    talk = [{"who": "me", "what": "q"}, {"who": "bot", "what": "a"}]
    (tmp_path / "b.json").write_text(json.dumps([{"talk": talk, "good": True}]))
    place = tmp_path / "dataset_info.json"
    assert fields(f"{place}:mine") == [{"instruction": "q", "output": "a"}]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert fields(f"{place}:chat") == [{"conversations": turns, "kto_tag": True}]
    with pytest.raises(DataError, match="has no data set 'none' \\(it has: mine, chat, hub\\)"):
        fields(f"{place}:none")
    with pytest.raises(DataError, match="names no file here"):
        fields(f"{place}:hub")


def test_two_rows_of_helpsteer_that_stand_together_are_one(tmp_path: Path) -> None:
    halves = [
        {"prompt": prompt, "response": answer, "helpfulness": score}
        for prompt, answer, score in [("q", "a", 1), ("q", "b", 2), ("r", "c", 3), ("s", "d", 1)]
    ]
    first, *rest = fields(write(tmp_path / "a.jsonl", halves))
    assert first == {"prompt": "q", "response": ["a", "b"], "helpfulness": [1, 2]}
    assert rest == halves[2:]


def test_a_form_that_there_is_not_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match="no form is named 'alpaka'; there are alpaca,"):
        fields(path, form="alpaka")
    with pytest.raises(DataError, match="no form is named 'alpaka'"):
        add(tmp_path / "home", [path], told=Told("alpaka"))


def test_a_recipe_that_names_no_form_says_the_same_as_before() -> None:
    assert "form" not in DataSource(source="a.jsonl").model_dump(mode="json")
    assert DataSource(source="a.jsonl", form="alpaca").model_dump(mode="json")["form"] == "alpaca"


def test_the_ledger_takes_tables_and_arrays_with_their_columns_mapped(tmp_path: Path) -> None:
    pairs = [row(number) for number in range(3)]
    renamed = [{"ask": p["prompt"], "up": p["chosen"], "down": p["rejected"]} for p in pairs]
    (tmp_path / "a.json").write_text(json.dumps(renamed))
    with (tmp_path / "b.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["ask", "up", "down"], delimiter=";")
        table.writeheader()
        table.writerows([*renamed, {"ask": "q", "up": "x", "down": ""}])
    told = Told(columns=(("prompt", "ask"), ("chosen", "up"), ("rejected", "down")))
    home = tmp_path / "home"
    result = add(home, [tmp_path / "a.json", tmp_path / "b.csv"], told=told).as_json()
    assert (result["accepted"], result["duplicates"]) == (3, 3)
    assert result["quarantined"] == {"empty:rejected": 1}
    assert quarantined(home)[0]["reason"] == "empty:rejected"


def test_a_column_may_be_mapped_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    path = write(tmp_path / "a.jsonl", [{"q": "a", "chosen": "b", "rejected": "c"}])
    call = ["add", str(path), "--home", str(tmp_path / "home"), "--column", "prompt=q", "--json"]
    done = CliRunner().invoke(prefs, call)
    assert json.loads(done.stdout)["accepted"] == 1


@pytest.mark.parametrize(
    ("name", "content", "reason", "message"),
    [
        ("a.jsonl", "{}".encode("utf-16"), "not_the_data", "is UTF-16. Save it as UTF-8"),
        (
            "a.jsonl",
            json.dumps([row(1)], indent=1).encode(),
            "one_value",
            "one JSON array over several lines. Name it .json",
        ),
        ("a.json", b"[", "unreadable", "is not JSON"),
    ],
)
def test_the_ledger_says_what_a_refused_file_is(
    tmp_path: Path, name: str, content: bytes, reason: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (refused,) = add(tmp_path / "home", [tmp_path / name]).refused
    assert refused.reason == reason and message in refused.message


def test_what_a_call_says_is_erased_with_its_row_and_from_tables(tmp_path: Path) -> None:
    function = {"name": "f", "arguments": {"who": "Maria of Lyon"}}
    call = {"type": "function", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked = [{"role": "user", "content": "Who was it?"}]
    (pair,) = preferences_of(
        {
            "prompt": asked,
            "chosen": [answer],
            "rejected": [{"role": "assistant", "content": "Nobody."}],
        }
    )
    words = words_of([pair[:3]])
    assert {"Maria of Lyon", "Who was it?", "Nobody."} <= words.whole and "f" not in words.whole
    (table := tmp_path / "inbox" / "a.csv").parent.mkdir()
    table.write_text("prompt;chosen;rejected\nWho was it?;b;c\nq;Maria of Lyon;d\nq;e;f\n")
    assert erase_from_files(tmp_path, words) == [str(table)]
    assert table.read_text() == "prompt;chosen;rejected\nq;e;f\n"


def test_calls_and_tools_come_out_of_the_ledger_as_they_went_in(tmp_path: Path) -> None:
    asked, tools = [{"role": "user", "content": "q"}], TOOLS
    pair = {"prompt": asked, "chosen": call(1), "rejected": call(2), "tools": tools}
    home = tmp_path / "home"
    renew_holdout(home, 0.0)
    plain = row(1)
    assert add(home, [write(tmp_path / "a.jsonl", [pair, plain, pair])]).counts.accepted == 2
    told = [
        {name: json.loads(value) for name, value in fields.items() if name in pair and value}
        for fields in fields(training_rows(home, "default"))
    ]
    assert pair in told
    assert {
        "prompt": [{"role": "user", "content": plain["prompt"]}],
        "chosen": [{"role": "assistant", "content": plain["chosen"]}],
        "rejected": [{"role": "assistant", "content": plain["rejected"]}],
    } in told


def test_held_out_prompts_of_calls_are_asked_with_their_tools(tmp_path: Path) -> None:
    home = tmp_path / "home"
    renew_holdout(home, 0.5, salt="s")
    calling = [
        {"prompt": f"call {n}", "chosen": call(n), "rejected": call(n + 1), "tools": TOOLS}
        for n in range(12)
    ]
    add(home, [write(tmp_path / "a.jsonl", [*calling, *(row(n) for n in range(12))])])
    path = holdout_prompts_file(home, "default")
    assert path is not None
    told = [prompt_to_answer(parsed(entry)[0], wants_target=True) for entry in fields(path)]
    calls = [prompt for prompt in told if prompt.messages[0]["content"].startswith("call")]
    assert calls and len(calls) < len(told)
    assert all(prompt.tools == TOOLS for prompt in calls)
    assert all(json.loads(prompt.target or "")["name"] == "f" for prompt in calls)
    assert all(prompt.tools is None for prompt in told if prompt not in calls)
