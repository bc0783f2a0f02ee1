"""Candidate against champion from what two evaluations left on disk: metric, judge, hold-out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_runs import fake_recipe
from ledger_cases import row, write

from alignflow.errors import EvaluationError, RecipeError
from alignflow.evaluation import telling_changes
from alignflow.evaluation.scores import Scores, write_scores
from alignflow.gate import Contestants, contest
from alignflow.ledger import add, erase, held_out_pairs, holdout_prompts_file, renew_holdout, status
from alignflow.recipe import Recipe
from alignflow.stages.artifacts import Artifact, publish, work_directory
from alignflow.stages.spec import InputRef, StageResult, StageSpec

JUDGE = {"function": f"{__name__}:prefers_good"}
asked: list[str] = []


def prefers_good(prompt: str, first: str, second: str) -> str:
    """A judge that knows good from bad."""
    asked.append(prompt)
    if ("good" in first) == ("good" in second):
        return "tie"
    return "first" if "good" in first else "second"


def recipe(**retrain: Any) -> Recipe:
    return fake_recipe(retrain={"gate": {"bootstrap_resamples": 200}, **retrain})


def evaluated(
    home: Path, role: str, good: int, data: str = "d" * 64, prompts: int = 150
) -> Artifact:
    """An evaluation in which the model answers the first `good` prompts well."""
    pinned = InputRef(stage="prepare", key="p", path="/p", digest=data)
    params = {"good": good, "prompts": prompts}
    spec = StageSpec(
        stage="evaluate", home=str(home), params=params, seed=0, inputs={"data": pinned}
    )
    output = work_directory(home, "evaluate", spec.key) / "output"
    output.mkdir(parents=True)
    answers = ["a good answer" if number < good else "a bad answer" for number in range(prompts)]
    rows = [
        {
            "model": role,
            "prompt_index": n,
            "prompt_name": f"p{n}",
            "question": f"question {n}",
            "conversation": f"prompt {n}",
            "target": "a good answer",
            "greedy": answer,
        }
        for n, answer in enumerate(answers)
    ]
    pq.write_table(pa.Table.from_pylist(rows), output / "responses.parquet")
    right = {f"p{n}": float(answer == "a good answer") for n, answer in enumerate(answers)}
    write_scores(output / "scores.json", {role: Scores(model="m", metrics={"exact_match": right})})
    return publish(spec, StageResult(), 0.0, 1)


def models(home: Path, ours: int, theirs: int) -> Contestants:
    return Contestants(
        "new", "old", evaluated(home, "aligned", ours), evaluated(home, "aligned", theirs)
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose ledger holds about half of 60 prompts out."""
    place = tmp_path / "home"
    renew_holdout(place, 0.5, "salt")
    add(place, [write(tmp_path / "rows.jsonl", [row(number) for number in range(60)])])
    return place


def test_the_recipes_first_metric_decides_where_nothing_else_is_named(home: Path) -> None:
    found = contest(recipe(), home, models(home, 120, 60), 1)
    assert (found.verdict, found.judge, found.test) == ("promote", "exact_match", "exact McNemar")
    assert (found.wins, found.losses, found.candidate, found.champion) == (60, 0, "new", "old")
    flips = [(flip.before, flip.after) for flip in found.flips]
    assert flips == [(0.0, 1.0)] * 5 and all(60 <= f.prompt_index < 120 for f in found.flips)
    assert "a good answer" not in found.model_dump_json(), "figures and places, no texts"


def test_a_judge_that_is_asked_for_decides_in_both_orders_and_is_asked_once(home: Path) -> None:
    asked.clear()
    contestants = models(home, 120, 60)
    first = contest(recipe(judge=JUDGE), home, contestants, 1)
    assert (first.verdict, first.test, first.judge) == ("promote", "sign test", JUDGE["function"])
    assert (first.wins, first.losses, first.prompts) == (60, 0, 150)
    assert first.human_agreement == 1.0  # chosen is the good one, by humans and by the judge
    assert [(flip.before, flip.after) for flip in first.flips] == [(0.0, 1.0)] * 5
    pairs = len(held_out_pairs(home, "default"))
    assert pairs > 10 and len(asked) == 2 * (60 + pairs)  # equal answers are a tie unasked
    assert contest(recipe(judge=JUDGE), home, contestants, 1) == first
    assert len(asked) == 2 * (60 + pairs)


def test_a_metric_that_is_named_outranks_the_judge(home: Path) -> None:
    asked.clear()
    gate = {"bootstrap_resamples": 200, "metric": "exact_match"}
    found = contest(recipe(judge=JUDGE, gate=gate), home, models(home, 120, 60), 1)
    assert found.judge == "exact_match" and asked == []


def test_a_metric_that_the_evaluation_does_not_have_is_refused_with_those_it_has(
    home: Path,
) -> None:
    with pytest.raises(RecipeError, match="the evaluation has exact_match"):
        contest(recipe(gate={"metric": "rouge"}), home, models(home, 120, 60), 1)


def test_models_scored_on_different_prompts_are_not_compared(home: Path) -> None:
    ours, theirs = evaluated(home, "aligned", 120), evaluated(home, "aligned", 60, "e" * 64)
    with pytest.raises(EvaluationError, match="not scored on the same prompts"):
        contest(recipe(), home, Contestants("new", "old", ours, theirs), 1)


def test_with_nothing_to_judge_on_a_person_is_asked(home: Path) -> None:
    found = contest(recipe(), home, Contestants("new", "old", None, None), 1)
    assert found.verdict == "inconclusive" and "alignflow promote" in found.reasons[0]


def test_the_holdout_is_one_prompt_once_and_what_is_erased_is_gone(home: Path) -> None:
    path = holdout_prompts_file(home, "default")
    assert path is not None and holdout_prompts_file(home, "default") == path
    entries = pq.read_table(path).to_pylist()
    assert {entry["group"] for entry in entries} == {"holdout"}
    assert len(entries) == status(home)["held_out_prompts"] == status(home)["held_out"]
    erase(home, row_id=entries[0]["id"], reason="asked for")
    assert len(pq.read_table(path)) == len(entries) - 1
    after = holdout_prompts_file(home, "default")
    assert after not in (None, path)
    assert entries[0]["prompt"] not in [pair.prompt for pair in held_out_pairs(home, "default")]


def test_scores_are_json_that_another_version_can_read(home: Path) -> None:
    written = json.loads((evaluated(home, "aligned", 3).directory / "scores.json").read_text())
    assert set(written["aligned"]) == set(Scores.model_fields)


def test_the_most_telling_changes_are_of_both_directions_and_always_the_same() -> None:
    before = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.5, "e": 1.0, "f": 0.0, "g": 1.0, "h": 0.0}
    after = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.6, "e": 0.0, "f": 1.0, "g": 1.0, "i": 1.0}
    assert telling_changes(before, after) == ["a", "c", "f", "b", "e"]
    assert telling_changes(dict(reversed(before.items())), after) == ["a", "c", "f", "b", "e"]
    assert telling_changes(before, after, count=9) == ["a", "c", "f", "d", "b", "e"]
    one_way = dict.fromkeys(before, 1.0)
    assert telling_changes(dict.fromkeys(before, 0.0), one_way) == ["a", "b", "c", "d", "e"]
    assert telling_changes(one_way, one_way) == []
