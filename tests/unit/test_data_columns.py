"""What is said of rows whose columns have other names works as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_cases import checked, errors, write_rows
from known_forms import DEMONSTRATIONS, PAIRS, RATINGS

from alignflow.data.columns import columns_line, columns_that_fit, flow
from alignflow.data.guessing import guessed
from alignflow.recipe import DataSource

SOURCE = DataSource(source="rows.csv")


@pytest.mark.parametrize(
    ("row", "part", "expected"),
    [
        ({"question": "q", "answer": "a"}, "sft", {"prompt": "question", "completion": "answer"}),
        (
            {"id": 1, "Frage": "q", "Antwort": "a"},
            "sft",
            {"prompt": "Frage", "completion": "Antwort"},
        ),
        (
            {"question": "q", "context": "c", "answer": "a"},
            "sft",
            {"instruction": "question", "response": "answer"},
        ),
        (
            {"ticketText": "q", "intent": "a"},
            "sft",
            {"prompt": "ticketText", "completion": "intent"},
        ),
        (
            {"query": "q", "good_answer": "a", "bad_answer": "b"},
            "preferences",
            {"prompt": "query", "chosen": "good_answer", "rejected": "bad_answer"},
        ),
        ({"body": "t"}, "pretrain", {"text": "body"}),
        (
            {"question": "q", "answer": "a"},
            "evaluation",
            {"prompt": "question", "target": "answer"},
        ),
        ({"a": "x", "b": "y", "c": "z"}, "sft", None),
        ({"number": 7}, "sft", None),
    ],
)
def test_columns_are_known_by_their_names_or_by_their_order(
    row: dict[str, Any], part: str, expected: dict[str, str] | None
) -> None:
    assert columns_that_fit(row, part) == expected


def test_an_error_about_columns_prints_what_would_work(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", [{"question": f"q{n}", "answer": "a"} for n in range(9)]
    )
    (problem,) = errors(checked(tmp_path, data__sft=path))
    line = problem.text.partition("Write `")[2].partition("`")[0]
    source = yaml.safe_load(line)["sft"]
    assert source == {"source": path, "columns": {"prompt": "question", "completion": "answer"}}
    assert errors(checked(tmp_path, data__sft=source)) == []


def test_a_source_keeps_what_it_says_already() -> None:
    source = DataSource(source="rows.csv", weight=0.5, columns={"prompt": "Anliegen der Kundin"})
    line = columns_line({"prompt": "q", "answer": "a"}, "sft", source)
    assert yaml.safe_load(line.removeprefix("Write `").removesuffix("`")) == {
        "sft": {
            "source": "rows.csv",
            "weight": 0.5,
            "columns": {"prompt": "Anliegen der Kundin", "completion": "answer"},
        }
    }


def test_where_no_names_help_the_columns_that_are_wanted_are_named() -> None:
    line = columns_line({"a": "x", "b": "y", "c": "z"}, "sft", SOURCE)
    assert "columns: {prompt: NAME, completion: NAME}" in line


@pytest.mark.parametrize(
    "value", ["a b", "no", "1e-5", "x: y", "{z}", "é, è", "Qwen/Qwen3-0.6B", 3]
)
def test_a_value_in_one_line_reads_as_itself(value: object) -> None:
    assert yaml.safe_load(flow({"name": [value]})) == {"name": [value]}


@pytest.mark.parametrize(
    ("row", "part"),
    [
        *((row, "sft") for form, row, _, _ in DEMONSTRATIONS if form != "oasst"),  # also pairs
        *((row, "preferences") for _, row, _, _ in PAIRS),
        *((row, "ratings") for _, row, _ in RATINGS),
    ],
)
def test_every_known_form_is_taken_for_the_part_that_it_is_of(
    row: dict[str, Any], part: str
) -> None:
    guess = guessed([row] * 3)
    assert guess is not None and guess.columns == {}, json.dumps(row)
    assert guess.part == part
