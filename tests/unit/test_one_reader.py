"""`prepare`, `check` and the ledger read rows with the same functions: odd rows show that they agree."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from check_cases import edit_json, model_copy, without_children
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import held_out_prompts, row, write

from alignflow.builtin import base_model_directory
from alignflow.checking.rows import row_findings
from alignflow.data import prepare
from alignflow.data.asked import Asked
from alignflow.data.feedback import Rating, pairs_of, preferences_of
from alignflow.data.file_rows import RawRow, json_object
from alignflow.data.reading import read_source
from alignflow.data.rows import PARTS, Rules, outcome_of
from alignflow.data.turns import normalised
from alignflow.errors import DataError
from alignflow.ledger import add, renew_holdout
from alignflow.ledger.batches import parsed
from alignflow.ledger.parsing import Line
from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import DataSource, ModelSource, Recipe
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import RowAccount

FEW = settings(
    max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
MANY = settings(max_examples=300, deadline=None, derandomize=True)
GOOD: dict[str, dict[str, Any]] = {
    "sft": {"prompt": "always asked", "completion": "select 1"},
    "preferences": {"prompt": "always asked", "chosen": "a", "rejected": "b", "split": "train"},
    "ratings": {"prompt": "always asked", "completion": "a", "label": True, "split": "train"},
    "prompts": {"prompt": "always asked", "split": "train"},
    "evaluation": {"prompt": "always judged", "target": "x"},
    "general": {"text": "always measured"},
    "pretrain": {"text": "always a document", "split": "train"},
    "replay": {"text": "always another document"},
}
"""Rows that no odd row excludes."""
BASES = [
    {
        name: texts.replace("always", "at times") if isinstance(texts, str) else texts
        for name, texts in good.items()
    }
    for good in GOOD.values()
]
LEDGER_ONLY = ("split:", "nul", "surrogate", "duplicate_key", "non_finite", "too_deep")
"""Why the ledger may refuse a pair that `prepare` takes: one that is not for training, a label that no
database stores, JSON that another reader may take otherwise. Beside that it takes ratings as pairs, and an
equal row once; `prepare` takes each row each time."""

TEXTS = [
    *(
        "",
        " ",
        "list trucks",
        "ALWAYS judged",
        "always measured",
        "question 1",
        "question 2",
        "question 3",
    ),
    *("a\0b", "half \ud800", "u\u0308", "long " * 300, "Human: q\n\nAssistant:"),
    *("\n\nHuman: q\n\nAssistant: yes", "\n\nHuman: q\n\nAssistant: no", "train", "held_out"),
]
texts = st.sampled_from(TEXTS) | st.text(max_size=6)
roles = st.sampled_from(["user", "assistant", "system", "tool", "robot", "human", "gpt"])
numbers = st.integers() | st.floats() | st.booleans() | st.none()
junk = st.recursive(
    texts | numbers,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
messages = st.fixed_dictionaries(
    {"role": roles | junk, "content": texts | junk}, optional={"tool_calls": junk, "name": junk}
) | st.fixed_dictionaries({"from": roles | junk, "value": texts | junk})
values = texts | st.lists(messages | junk, max_size=3) | junk
NAMES = ("prompt", "completion", "messages", "text", "chosen", "rejected", "label", "target")
changes = st.dictionaries(
    st.sampled_from((*NAMES, "group", "split", "id", "responses", "scores", "annotator")),
    values,
    max_size=3,
)
odd_rows = st.builds(lambda good, odd: {**good, **odd}, st.sampled_from([{}, *BASES]), changes)
pairs = st.builds(lambda odd: {**GOOD["preferences"], **odd}, changes)
lines = odd_rows.map(lambda fields: json.dumps(fields).encode()) | st.sampled_from(
    [b"{", b"[1]", b"7", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b"\xef\xbb\xbf{}", b"NaN"]
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a ledger that holds out about half of the prompts `question N`."""
    home = tmp_path_factory.mktemp("home")
    renew_holdout(home, 0.5, salt="s")
    add(home, [write(home / "pairs.jsonl", [row(number) for number in range(8)])])
    assert held_out_prompts(home)
    return home


def recipe_on(folder: Path, odd: list[bytes], judged: bool = True) -> Recipe:
    """All parts have the odd rows, some of them twice, and a good one; evaluation where `judged`."""
    sources = {
        part: str(
            write(
                folder / f"{part}.jsonl",
                [*odd, good, *odd[:2]] if judged or part != "evaluation" else [good],
            )
        )
        for part, good in GOOD.items()
    }
    return Recipe.model_validate(
        {
            "name": "odd",
            "base_model": "builtin:freight-base",
            "data": {**sources, "held_out_share": 0.3, "max_dropped_share": 1.0},
            "pretrain": {},
            "sft": {"max_length": 96},
            "dpo": {"max_length": 96},
            "method": "dpo",
            "evaluation": {"metrics": ["overlap"]},
        }
    )


def checked(recipe: Recipe, home: Path, model: Path | None = None) -> dict[str, RowAccount]:
    """The accounts of `check --full`, without its child. `model` is the base, where it is not ours."""
    with without_children():
        base = model or base_model_directory("freight-base")
        context = json.loads((base / "config.json").read_text())["max_position_embeddings"]
        accounts, findings = row_findings(recipe, base, context, home=home, full=True)
    assert [finding for finding in findings if finding.level == "error"] == []
    return {account.part: account.account.rows for account in accounts}


@FEW
@given(odd=st.lists(lines, max_size=12))
def test_check_and_prepare_have_the_same_account_of_any_rows(odd: list[bytes], home: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_on(Path(folder), odd)
        spec = stage_spec(recipe, "prepare", home, {})
        events = EventWriter(Path(folder) / "events.jsonl", 1)
        result = prepare.run(spec, Path(folder) / "work", events)
        events.close()
        accounts = checked(recipe, home)
    assert {part: account.model_dump() for part, account in accounts.items()} == (
        result.details["rows"]
    )
    assert all(account.balanced and account.trained for account in accounts.values())


def test_a_token_beyond_the_embedding_costs_its_row_in_check_and_in_prepare(
    tmp_path: Path, home: Path
) -> None:
    model = model_copy(tmp_path)
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    extra = {**added[0], "id": 1024, "content": "<|extra|>"}
    edit_json(model / "tokenizer.json", added_tokens=[*added, extra])
    rows = [
        {"prompt": "q <|extra|>", "completion": "a", "chosen": "a", "rejected": "b", "label": 1},
        {"prompt": "r", "completion": "a <|extra|>", "chosen": "a", "rejected": "<|extra|>"},
    ]
    recipe = recipe_on(tmp_path, [json.dumps(row).encode() for row in rows], judged=False)
    recipe = recipe.model_copy(update={"base_model": ModelSource(source=str(model))})
    accounts = checked(recipe, home, model)
    for part in ("sft", "preferences"):
        assert accounts[part].dropped == {"beyond_embedding": 4}
    events = EventWriter(tmp_path / "events.jsonl", 1)
    spec = stage_spec(recipe, "prepare", home, {})
    result = prepare.run(spec, tmp_path / "work", events)
    events.close()
    assert {part: account.model_dump() for part, account in accounts.items()} == (
        result.details["rows"]
    )
    alone = recipe.data.model_copy(
        update={
            "sft": [DataSource(source=str(write(tmp_path / "alone.jsonl", rows)))],
            "held_out_share": 0.0,
        }
    )
    spec = stage_spec(recipe.model_copy(update={"data": alone}), "prepare", home, {})
    wanted = "nothing is left of 2 rows .beyond_embedding 2.*'.*', whose id is 1024; the model's"
    with pytest.raises(DataError, match=wanted):
        prepare.run(spec, tmp_path / "again", EventWriter(tmp_path / "events", 1))


def test_what_is_held_out_and_excluded_is_known_to_check_too(tmp_path: Path, home: Path) -> None:
    held = sorted(held_out_prompts(home))
    odd = [
        {"prompt": held[0].upper(), "completion": "x", "chosen": "x", "rejected": "y", "label": 1},
        {"text": "always measured"},
        {**GOOD["preferences"], **GOOD["ratings"], "text": "t", "split": "held_out"},
    ]
    lines = [json.dumps(fields).encode() for fields in odd]
    # any demonstration may be judged: only what evaluation asks itself is
    accounts = checked(recipe_on(tmp_path, lines, judged=False), home)
    assert accounts["sft"].dropped == {"evaluation_prompt": 2}
    assert accounts["preferences"].dropped == {"evaluation_prompt": 2, "missing_columns": 2}
    assert accounts["ratings"].held_out == accounts["prompts"].held_out == 1
    assert accounts["pretrain"].dropped == {"general_text": 3, "missing_columns": 2}


@MANY
@given(part=st.sampled_from(sorted(PARTS)), fields=odd_rows | st.dictionaries(texts, junk))
def test_no_row_ends_more_than_itself(part: str, fields: dict[str, Any]) -> None:
    outcome = outcome_of(
        part, RawRow("a:1", fields), Rules(None, {}, 0.1, Asked.of([]), frozenset())
    )
    assert (outcome.dropped is None) == (not outcome.message)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": {"$oid": "1"}, "prompt": "q", "completion": ""}, "empty"),
        ({"prompt": "What is \ud83d?", "completion": "a"}, "surrogate"),
        ({"messages": [{"from": {"name": "x"}, "value": "q"}]}, "unknown_role"),
        ({"prompt": "q", "completion": "a", 3: "x", None: "y"}, None),
        ({3: "x", None: "y"}, "unreadable"),
    ],
)
def test_odd_rows_that_once_ended_the_stage(fields: dict[Any, Any], reason: str | None) -> None:
    rules = Rules(None, {}, 0.1, Asked.of([]), frozenset())
    assert outcome_of("sft", RawRow("a:1", fields), rules).dropped == reason


def test_a_ragged_table_loses_its_ragged_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\nq,a\nq,a,extra\n")
    rows = [*read_source(DataSource(source=str(tmp_path / "a.csv")), seed=0)]
    assert [row.problem for row in rows] == [None, "ragged"]
    assert "more cells than the 2 columns" in rows[1].message


@MANY
@given(fields=pairs)
def test_the_ledger_takes_the_pairs_that_prepare_takes(fields: dict[str, Any]) -> None:
    line = json.dumps(fields).encode()
    batch = parsed([Line(0, len(line), line, len(line))])
    raw = RawRow("a:1", json_object(line))
    ours = outcome_of("preferences", raw, Rules(None, {}, 0.1, Asked.of([]), frozenset()))
    if fields["chosen"] is None or fields["rejected"] is None:
        assert ours.dropped == "missing_columns"
    elif batch.bad:
        assert ours.dropped is not None or batch.bad[0].reason.startswith(LEDGER_ONLY)
    else:
        assert ours.dropped is None
        (taken,) = batch.pairs
        (pair,) = pairs_of(fields)
        for ledgers, (turn,) in (
            (taken.preference.chosen, pair.chosen),
            (taken.preference.rejected, pair.rejected),
        ):
            assert normalised(turn["content"], "text") == ledgers
        asked = [normalised(turn["content"], "prompt") for turn in pair.prompt]
        assert [turn["content"] for turn in json.loads(taken.preference.prompt)] == asked


def test_ranked_responses_are_the_same_pairs_in_a_file_and_in_the_ledger() -> None:
    ranked = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 2]}
    said = preferences_of(ranked)
    assert not isinstance(said, Rating)
    ours = [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pairs_of(ranked)]
    assert ours == [(pair.chosen, pair.rejected) for pair in said] == [("b", "a"), ("c", "a")]
