"""The report: JSON as promised, one page without outside resources, a closing table."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignflow.errors import RecipeError
from alignflow.ledger.erasing_files import ERASED, words_of
from alignflow.pipeline.answers import samples_side_by_side
from alignflow.pipeline.plot import line_plot
from alignflow.pipeline.report import as_text, build_report, load_report, print_report, write_report
from alignflow.recipe import Recipe
from alignflow.stages.artifacts import Artifact, publish, work_directory
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import RowAccount, StageOutcome, StageResult, StageSpec

RECIPE = Recipe.model_validate(
    {"name": "tiny", "base_model": "b", "data": {"sft": "s"}, "sft": {}, "merge": {}}
)
EVALUATION = {
    "evaluation": {
        "base": {"accuracy": 0.0, "sampled_accuracy": 0.0},
        "sft": {"accuracy": 0.75, "sampled_accuracy": 0.4},
    },
    "intervals": {"sft": {"accuracy": [0.7, 0.8]}},
    "samples": [
        {"question": "<b>who?</b>", "target": '{"answer": "me"}', "base": "?", "sft": "me & you"}
    ],
}


def finished(home: Path, stage: str, result: StageResult) -> Artifact:
    spec = StageSpec(
        stage=stage, home=str(home), params={"section": {"learning_rate": 0.25}}, seed=0
    )
    work = work_directory(home, stage, spec.key)
    (work / "output").mkdir(parents=True)
    events = EventWriter(work / "events.jsonl", 1)
    for step in range(5):
        events.metrics(step, {"loss": 5.0 - step})
    events.close()
    folders = {"sft": "adapter", "merge": "model"}
    if stage in folders:
        (work / "output" / folders[stage]).mkdir()
        (work / "output" / folders[stage] / "weights").write_text("w")
    return publish(spec, result, 1.5, 1)


def outcome(artifact: Artifact) -> StageOutcome:
    return StageOutcome(
        stage=artifact.stage,
        key=artifact.key,
        state="completed",
        seconds=1.5,
        attempts=1,
        artifact=artifact.directory,
        result=artifact.result,
    )


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    rows = RowAccount(read=10, trained=8, dropped={"too_long": 2})
    stages = [
        outcome(finished(tmp_path, "sft", StageResult(metrics={"loss": 1.0}, rows=rows))),
        outcome(finished(tmp_path, "evaluate", StageResult(details=EVALUATION))),
        outcome(finished(tmp_path, "merge", StageResult())),
    ]
    mlflow = {"tracking_uri": "sqlite:///x.db", "experiment": "tiny", "run_id": "r"}
    return build_report(RECIPE, "tiny-1", "completed", 12.3456, stages, mlflow)


def test_the_json_has_the_promised_keys(report: dict[str, Any]) -> None:
    assert list(report) == [
        "schema",
        "run_id",
        "recipe",
        "recipe_digest",
        "status",
        "seconds",
        "ended",
        "machine",
        "cost",
        "stages",
        "evaluation",
        "evaluation_intervals",
        "adapter",
        "merged_model",
        "registered_model",
        "mlflow",
    ]
    assert report["schema"] == 1
    assert list(report["stages"][0]) == [
        "stage",
        "key",
        "state",
        "seconds",
        "attempts",
        "artifact",
        "mlflow_run_id",
        "metrics",
        "rows",
    ]
    assert report["stages"][0]["rows"] == {
        "read": 10,
        "trained": 8,
        "truncated": 0,
        "held_out": 0,
        "dropped": {"too_long": 2},
    }
    assert report["evaluation"]["sft"]["accuracy"] == 0.75
    assert report["evaluation_intervals"] == {"sft": {"accuracy": [0.7, 0.8]}}
    assert Path(report["adapter"]).name == "adapter"
    assert Path(report["merged_model"]).name == "model"


def test_what_is_written_is_what_is_loaded(tmp_path: Path, report: dict[str, Any]) -> None:
    directory = write_report(tmp_path, report, RECIPE)
    assert directory == tmp_path / "runs" / "tiny-1"
    assert load_report(tmp_path, "tiny-1") == json.loads(json.dumps(report))


def test_the_page_is_one_file_that_escapes_what_models_say(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    page = (write_report(tmp_path, report) / "report.html").read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "<b>who?</b>" not in page and "&lt;b&gt;who?" in page
    assert "me &amp; you" in page
    assert page.count("<polyline") == 1  # the loss of sft
    assert "70.0 to 80.0" in page and "75.0 %" in page
    assert "too_long 2" in page and "learning_rate" in page


def test_the_page_begins_with_what_came_out_and_says_when_where_and_at_what_cost(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    page = (write_report(tmp_path, report) / "report.html").read_text()
    assert "<strong>Completed: accuracy 0.0 % → 75.0 %.</strong>" in page
    assert page.index("<strong>") < page.index("<h1>")
    assert f"{report['ended'][:10]} " in page and " processor hours" in page
    assert re.search(r"Linux \w+, \d+ cores?, no GPU", page) or report["machine"]["gpu"] in page


def test_sample_answers_are_sorted_by_what_changed() -> None:
    def sample(name: str, before: str, after: str, *scores: float) -> dict[str, Any]:
        said = dict(zip(("sft", "aligned"), scores, strict=False))
        return {"question": name, "target": "t", "sft": before, "aligned": after, "scores": said}

    samples = [
        sample("same", "x", "x", 1.0, 1.0),
        sample("reworded", "x", "y", 0.0, 0.0),
        sample("broken", "x", "y", 1.0, 0.0),
        sample("fixed", "x", "y", 0.0, 1.0),
        sample("unjudged", "x", "y"),
    ]
    shown = samples_side_by_side(samples, ["base", "sft", "aligned"])
    assert [one.question for one in shown] == ["fixed", "broken", "reworded", "unjudged", "same"]
    assert [(said.model, said.mark) for said in shown[0].answers] == [
        ("sft", "wrong"),
        ("aligned", "right"),
    ]
    assert [said.mark for said in shown[3].answers] == ["", ""]


def test_what_is_erased_goes_from_the_page_with_quotes_and_brackets(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    asked, short = """it's "her" <b>& no one else's""", "I'm ok"
    report["retrain"] = {"outcome": asked, "verdict": None}
    report["stages"][0]["error"] = short
    page = (write_report(tmp_path, report) / "report.html").read_text()
    prompt = json.dumps([{"role": "user", "content": asked}])
    cleaned = words_of([(prompt, short, short)]).cleaned_page(page)
    assert "her" in page and ERASED in cleaned and "one else" not in cleaned
    assert "&#39;m ok" in page and "m ok" not in cleaned


CERTIFICATE = {
    "status": "unverified",
    "figures": None,
    "arithmetic": "as PEFT does",
    "limits": {"max_kl": 1e-3},
    "serve": {"merged": "vllm serve out"},
}
FIGURES = {
    "probes": 4,
    "tokens": 80,
    "kl": 2e-6,
    "max_logp_difference": 0.03,
    "top1_agreement": 0.9875,
    "finite": True,
    "greedy_agreement": 0.75,
    "latency_ratio": None,
    "streamed": False,
}


@pytest.mark.parametrize(
    ("figures", "said", "unsaid"),
    [
        (None, "not compared with base plus adapter", "nats per token"),
        (FIGURES, "98.75 % of 80 tokens", "over plain base"),
        (FIGURES | {"latency_ratio": 1.004}, "1.00 times", "not compared"),
    ],
)
def test_the_page_shows_what_a_merge_certificate_measured_and_no_more(
    figures: dict[str, Any] | None, said: str, unsaid: str, tmp_path: Path
) -> None:
    certificate = CERTIFICATE | {"figures": figures}
    made = finished(tmp_path, "merge", StageResult(details={"certificate": certificate}))
    found = build_report(
        RECIPE,
        "r",
        "completed",
        1.0,
        [outcome(made)],
        {
            "tracking_uri": None,
            "experiment": "tiny",
            "run_id": None,
        },
    )
    page = (write_report(tmp_path, found) / "report.html").read_text()
    assert said in page and unsaid not in page and "vllm serve out" in page


def test_a_run_that_failed_before_anything_was_made_has_a_report_too(tmp_path: Path) -> None:
    stages = [
        StageOutcome(stage="prepare", state="failed", error="no data [here]", exit_code=65),
        StageOutcome(stage="sft", state="skipped"),
    ]
    found = build_report(RECIPE, "r", "failed", 1.0, stages, {"tracking_uri": None})
    assert found["evaluation"] == {} and found["adapter"] is None and found["merged_model"] is None
    assert "no data [here]" in (write_report(tmp_path, found) / "report.html").read_text()
    assert "no data [here]" in printed(found)


def test_the_closing_table_says_before_and_after_and_where(report: dict[str, Any]) -> None:
    text = printed(report)
    assert "accuracy 0.0% → 75.0%" in text
    assert report["merged_model"] in text
    assert "mlflow ui --backend-store-uri sqlite:///x.db" in text


def printed(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_unknown_run_is_an_error_that_lists_the_runs(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    write_report(tmp_path, report)
    with pytest.raises(RecipeError, match=r"no run other .*tiny-1"):
        load_report(tmp_path, "other")


def test_rates_are_per_cent_and_other_figures_are_not() -> None:
    assert as_text("accuracy", 0.256) == "25.6%"
    assert as_text("perplexity_general", 2.584) == "2.58"
    assert as_text("accuracy", None) == "-"


def test_a_flat_curve_is_drawn_too() -> None:
    assert "<polyline" in line_plot({1: 2.0, 2: 2.0, 3: 2.0})
