"""Metric modules, loaded as users' own are, against figures worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from alignflow.builtin import rows
from alignflow.errors import EvaluationError
from alignflow.evaluation.about import OURS
from alignflow.evaluation.measure import main_places
from alignflow.evaluation.metric_modules import (
    MetricModule,
    compute_metric,
    load_metrics,
    load_module,
    metric_digests,
)
from alignflow.recipe import EvaluationSection

pytestmark = pytest.mark.slow  # `evaluate` takes seconds to import


def figure(name: str, predictions: list, references: list | None = None, **arguments) -> float:
    return compute_metric(
        MetricModule(name, load_module(name), arguments), predictions, references
    ).figure


@pytest.mark.parametrize("path", sorted(OURS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_each_module_loads_and_has_one_import_per_line(path: Path) -> None:
    load_module(path.stem)
    for line in path.read_text().splitlines():
        if line.startswith(("import ", "from ")):
            assert "(" not in line and "," not in line, line


def test_exact_match_forgives_blanks_at_the_ends_only() -> None:
    assert figure("exact_match", [" a\n", "A", "a b"], ["a", "a", "a  b"]) == pytest.approx(1 / 3)


def test_json_must_parse_whole_and_fit_the_schema() -> None:
    texts = ['{"n": 1}', 'Sure: {"n": 1}', '{"n": "x"}', "NaN"]
    assert figure("json_validity", texts, [""] * 4) == 0.5
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert figure("json_validity", texts, [""] * 4, schema=schema) == 0.25


def test_token_f1_counts_words_in_any_order_without_articles() -> None:
    assert figure("token_f1", ["The cat sat!"], ["sat, a cat"]) == 1.0
    assert figure("token_f1", ["a blue blue house"], ["blue car"]) == pytest.approx(2 / 5)
    assert figure("token_f1", ["", "word"], ["the", ""]) == 0.5


def test_overlap_is_the_f1_of_the_longest_common_subsequence() -> None:
    # the cat sat / the sat cat: two words in order, of three and three.
    assert figure("overlap", ["the cat sat"], ["The sat cat"]) == pytest.approx(2 / 3)
    # a b c d in a x c: a and c; 2 * 2 / (4 + 3).
    assert figure("overlap", ["a b c d"], ["a x c"]) == pytest.approx(4 / 7)
    assert figure("overlap", ["", "word"], ["", ""]) == 0.5


def test_perplexity_weighs_tokens_not_texts() -> None:
    found = figure("perplexity", [math.log(2) * 3, math.log(8)], [3, 1])
    assert found == pytest.approx(2 ** (6 / 4))


def test_ties_are_half_a_win() -> None:
    assert figure("win_rate", [1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 4.0]) == 2.5 / 4
    assert figure("preference_accuracy", [1.0, 2.0], [0.0, 2.0]) == 0.75


def test_kl_is_the_mean_log_ratio_and_length_the_mean_of_tokens() -> None:
    assert figure("kl", [-1.0, -2.0], [-2.0, -2.5]) == pytest.approx(0.75)
    assert figure("response_length", [2, 4]) == 3.0


def test_execution_accuracy_runs_the_answers_and_counts_unsafe_ones() -> None:
    example = next(row for row in rows("freight-evaluation") if "SELECT" in row["target"])
    target, right = example["target"], json.loads(example["target"])["answer"]
    answers = [right, "DELETE FROM trucks", f"Here you are: {right}", "no idea"]
    metric = MetricModule("execution_accuracy", load_module("execution_accuracy"), {})
    found = compute_metric(metric, answers, [target] * 4)
    assert found.figure == 0.25
    assert found.per_prompt["execution_accuracy"] == [1.0, 0.0, 0.0, 0.0]
    assert found.per_prompt["unsafe_rate"] == [0.0, 1.0, 0.0, 0.0]
    assert found.per_prompt["chatter_rate"] == [0.0, 0.0, 1.0, 0.0]


OWN_MODULE = """
import datasets
import evaluate

class Shouting(evaluate.Metric):
    def _info(self):
        kinds = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="d", citation="", features=datasets.Features(kinds)
        )

    def _compute(self, predictions, references):
        return {"shouting": %s}
"""


def own_metric(folder: Path, result: str) -> MetricModule:
    path = folder / "shouting.py"
    path.write_text(OWN_MODULE % result)
    (metric,) = load_metrics(EvaluationSection(metrics=[str(path)]))
    return metric


def test_a_users_own_module_is_loaded_by_path(tmp_path: Path) -> None:
    metric = own_metric(tmp_path, "sum(p.isupper() for p in predictions) / len(predictions)")
    assert metric.name == "shouting"
    assert compute_metric(metric, ["A", "b"], ["", ""]).figure == 0.5


@pytest.mark.parametrize("result", ["float('nan')", "1 / 0", "'high'"])
def test_a_metric_that_cannot_be_computed_is_an_error_never_a_zero(
    tmp_path: Path, result: str
) -> None:
    with pytest.raises(EvaluationError, match="shouting"):
        compute_metric(own_metric(tmp_path, result), ["A"], [""])


def test_an_unknown_metric_is_named_with_those_there_are() -> None:
    with pytest.raises(EvaluationError, match=r"'blue'.*exact_match"):
        load_metrics(EvaluationSection(metrics=["blue"]))


def test_a_changed_metric_file_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    section = EvaluationSection(metrics=[str(path)])
    path.write_text("a = 1")
    before = metric_digests(section)
    path.write_text("a = 2")
    assert metric_digests(section) != before


@pytest.mark.parametrize(
    ("groups", "places"),
    [
        (["test", "paraphrase", "dev"], [0]),
        (["development", "paraphrase", "other"], [0, 2]),
        (["paraphrase", "paraphrase"], [0, 1]),
        (["all", "all"], [0, 1]),
    ],
)
def test_accuracy_is_about_the_test_group_else_all_but_paraphrases(
    groups: list[str], places: list[int]
) -> None:
    assert main_places(groups) == places
