"""Metrics declare themselves: one file, and recipe, check, evaluation, plan and report know it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from check_cases import changed

from alignflow.checking.findings import Finding
from alignflow.checking.judging_rules import judging_findings
from alignflow.errors import EvaluationError, RecipeError
from alignflow.evaluation import about
from alignflow.evaluation.metric_modules import (
    arguments_of,
    compute_metric,
    load_metrics,
    metric_digests,
)
from alignflow.pipeline.plan import judged_by
from alignflow.pipeline.report import as_text
from alignflow.pipeline.report_page import metric_rows
from alignflow.recipe import EvaluationSection, Recipe, RewardTerm, WatchSection
from alignflow.services.deploy import with_absolute_paths
from alignflow.training.rl.reward_sources import load_rewards

NEW = '''
"""Share of responses with the target's first letter; and how many are empty."""

from alignflow.evaluation import module
from alignflow.evaluation.about import Figure
from alignflow.evaluation.about import MetricAbout
from alignflow.recipe.judging import MetricArguments


class Arguments(MetricArguments):
    """What is ignored."""

    ignore_case: bool = False


ABOUT = MetricAbout(
    name="first_letter",
    is_rate=True,
    also=(Figure(name="emptiness", better="lower", place=1.5),),
    arguments=Arguments,
)


class FirstLetter(module.TextMetric):
    """Compares first letters."""

    def _compute(self, predictions, references, ignore_case=False):
        fold = str.lower if ignore_case else str
        pairs = zip(predictions, references, strict=True)
        return module.means(
            first_letter=[float(fold(p[:1]) == fold(r[:1])) for p, r in pairs],
            emptiness=[float(not p) for p in predictions],
        )
'''


def recipe(**evaluation: Any) -> Recipe:
    return Recipe.model_validate(changed(evaluation=evaluation))


def said(found: list[Finding]) -> str:
    return "\n".join(f"{finding.level} {finding.line}" for finding in found)


@pytest.fixture
def with_new_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "metrics"
    shutil.copytree(about.OURS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "first_letter.py").write_text(NEW)
    monkeypatch.setattr(about, "OURS", folder)


@pytest.mark.usefixtures("with_new_metric")
@pytest.mark.slow
def test_a_metric_is_one_file() -> None:
    entry = {"first_letter": {"ignore_case": True}}
    named = recipe(metrics=[entry, "exact_match"])
    assert said(list(judging_findings(named))) == ""
    wrong = recipe(metrics=[{"first_letter": {"case": True}}])
    assert "Its arguments are: ignore_case" in said(list(judging_findings(wrong)))
    assert "did you mean first_letter?" in said(
        list(judging_findings(recipe(metrics=["first_leter"])))
    )
    metric, _ = load_metrics(named.evaluation)
    figures = compute_metric(metric, ["Ab", "b", ""], ["a", "c", "x"])
    assert figures.figure == pytest.approx(1 / 3)
    assert figures.per_prompt["emptiness"] == [0.0, 0.0, 1.0]
    assert as_text("sampled_first_letter", 0.25) == "25.0%"
    assert as_text("emptiness", 0.25) == "0.25"
    evaluation = {
        "sft": {"emptiness": 0.5, "first_letter": 0.25, "accuracy": 0.25, "win_rate": 1.0}
    }
    rows = metric_rows({"evaluation": evaluation, "evaluation_intervals": {}}, leading=True)
    assert [row["name"] for row in rows] == ["accuracy", "emptiness", "win_rate"]
    assert [row["lower_is_better"] for row in rows] == [False, True, False]


def test_a_users_own_module_by_path_takes_arguments_and_needs_no_declaration(
    tmp_path: Path,
) -> None:
    path = tmp_path / "own_share.py"
    path.write_text(
        "import datasets\nimport evaluate\n\nclass Own(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        kinds = {'predictions': datasets.Value('string'), "
        "'references': datasets.Value('string')}\n"
        "        return evaluate.MetricInfo(description='d', citation='', "
        "features=datasets.Features(kinds))\n"
        "    def _compute(self, predictions, references, wanted='a'):\n"
        "        return {'own_share': sum(p == wanted for p in predictions) / len(predictions)}\n"
    )
    named = recipe(metrics=[{str(path): {"wanted": "b"}}])
    assert said(list(judging_findings(named))) == ""
    (metric,) = load_metrics(named.evaluation)
    assert compute_metric(metric, ["a", "b", "b", "b"], [""] * 4).figure == 0.75
    assert list(judged_by(named)) == [str(path)]


def test_declarations_are_read_without_the_libraries_that_metrics_need() -> None:
    code = (
        "import sys, alignflow.evaluation as e; assert e.text_metrics() and e.is_rate('win_rate'); "
        "print([m for m in ('torch', 'evaluate', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_figures_are_shown_as_they_were_before_they_were_declared() -> None:
    rates = ["accuracy", "sampled_accuracy", "paraphrase_execution_accuracy", "unsafe_rate"]
    rates += ["win_rate", "sampled_exact_match", "json_validity", "token_accuracy", "own_rate"]
    assert [name for name in rates if not about.is_rate(name, 0.5)] == []
    others = ["overlap", "kl_to_sft", "perplexity_general", "response_length", "loss"]
    assert [name for name in others if about.is_rate(name, 0.5)] == []
    lower = ["unsafe_rate", "chatter_rate", "perplexity_general", "kl_to_sft"]
    assert [name for name in [*rates, *others] if about.lower_is_better(name)] == [
        "unsafe_rate",
        "kl_to_sft",
        "perplexity_general",
    ]
    assert all(about.lower_is_better(name) for name in lower)
    assert about.leading_figures("paraphrase") == [
        *("accuracy", "sampled_accuracy", "paraphrase_accuracy", "unsafe_rate", "chatter_rate"),
        *("win_rate", "kl_to_sft", "perplexity_general", "response_length"),
    ]


def test_a_file_that_declares_nothing_or_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "blank.py"
    for text in ("a = 1\n", NEW):
        path.write_text(text)
        with pytest.raises(ValueError, match="declares no metric"):
            about.read_about(path)


def database(path: Path, rows: int) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS trucks (id INTEGER)")
        connection.executemany("INSERT INTO trucks VALUES (?)", [(n,) for n in range(rows)])
    connection.close()
    return path


def test_a_recipe_names_databases_for_the_metric_the_watch_and_the_reward(tmp_path: Path) -> None:
    path = str(database(tmp_path / "company.sqlite", 3))
    entry = {"execution_accuracy": {"database": path, "refusal": "No."}}
    named = recipe(metrics=[entry])
    assert said(list(judging_findings(named))) == ""
    (metric,) = load_metrics(named.evaluation)
    count = "SELECT COUNT(*) FROM trucks"
    figures = compute_metric(
        metric, ["SELECT 3", "No.", "DROP TABLE trucks"], [count, "No.", count]
    )
    assert figures.per_prompt["execution_accuracy"] == [1.0, 1.0, 0.0]
    assert figures.per_prompt["unsafe_rate"] == [0.0, 0.0, 1.0]
    assert WatchSection(metric=entry).name == "execution_accuracy"
    term = RewardTerm.model_validate({"source": "execution", "database": path, "refusal": "No."})
    reward = load_rewards([term])["execution"]
    assert reward(["?"] * 3, ["SELECT 3", "SELECT 4", "No."], [count, count, "No."]).tolist() == [
        *(1.0, 0.0, 1.0),
    ]


def test_the_key_changes_with_the_file_and_the_version(tmp_path: Path) -> None:
    path = database(tmp_path / "company.sqlite", 3)
    named = recipe(metrics=[{"execution_accuracy": {"database": str(path)}}])
    before = judged_by(named), metric_digests(named.evaluation)
    database(path, 1)
    after = judged_by(named), metric_digests(named.evaluation)
    assert list(before[0]) == [str(path)]
    assert before[0] != after[0] and before[1] != after[1]

    def dump(version: str) -> str:
        source = {"postgres": "COMPANY_DB_URL", "version": version}
        return recipe(metrics=[{"execution_accuracy": {"database": source}}]).model_dump_json()

    assert dump("2026-11") != dump("2026-12")


def test_recipes_without_a_database_keep_their_dump() -> None:
    assert RewardTerm.model_validate("execution").model_dump() == {
        "source": "execution",
        "weight": 1.0,
    }
    section = EvaluationSection.model_validate({"metrics": ["exact_match", "overlap"]})
    assert section.model_dump()["metrics"] == ["exact_match", "overlap"]
    term = RewardTerm.model_validate({"source": "execution", "database": "a.sqlite"})
    assert RewardTerm.model_validate(term.model_dump(mode="json")) == term


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"database": "none.sqlite"},
            "error evaluation.metrics: there is no database 'none.sqlite'",
        ),
        ({"dbase": "x"}, "execution_accuracy: dbase: Extra inputs"),
        ({"refusal": "No."}, "name it in `database`"),
        (
            {"database": {"postgres": "UNSET_DB_URL", "version": "1"}},
            "warning evaluation.metrics: the environment variable UNSET_DB_URL is not set here",
        ),
        (
            {"database": {"postgres": "postgresql://u:p@h/d", "version": "1"}},
            "should match pattern",
        ),
        ({"database": {"postgres": "MLFLOW_TRACKING_URI", "version": "1"}}, "is kept from stages"),
    ],
)
def test_check_says_what_is_wrong_with_a_database(arguments: dict[str, Any], expected: str) -> None:
    named = recipe(metrics=[{"execution_accuracy": arguments}])
    assert expected in said(list(judging_findings(named)))


def test_arguments_that_a_metric_does_not_take_are_refused_when_it_is_loaded() -> None:
    section = EvaluationSection.model_validate({"metrics": [{"exact_match": {"case": 1}}]})
    with pytest.raises(RecipeError, match=r"exact_match: case: .*Its arguments are: none"):
        arguments_of(section, section.uses[0])
    with pytest.raises(ValueError, match="write one metric an entry"):
        EvaluationSection.model_validate({"metrics": [{"exact_match": {}, "overlap": {}}]})


def test_a_figure_out_of_its_declared_range_is_an_error() -> None:
    (metric,) = load_metrics(EvaluationSection(metrics=["exact_match"]))

    class Broken:
        def compute(self, **_: Any) -> dict[str, float]:
            return {"exact_match": 1.5}

    with pytest.raises(EvaluationError, match=r"gave 1\.5"):
        compute_metric(metric._replace(module=Broken()), ["a"], ["a"])


def test_databases_of_a_deployed_recipe_are_absolute(tmp_path: Path) -> None:
    database(tmp_path / "a.sqlite", 1)
    entry = {"execution_accuracy": {"database": ["a.sqlite"], "refusal": "No."}}
    moved = with_absolute_paths(recipe(metrics=[entry, "exact_match"]), tmp_path)
    (use, plain) = moved.evaluation.uses
    assert use.arguments == {"database": [str(tmp_path / "a.sqlite")], "refusal": "No."}
    assert plain.name == "exact_match"
