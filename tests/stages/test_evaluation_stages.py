"""The stages `evaluate` and `merge` on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from stage_runs import make_spec, run_and_publish, work_of

from alignflow.errors import CertificateError, EvaluationError
from alignflow.evaluation import suite
from alignflow.merging import stage as merging
from alignflow.recipe import EvaluationSection, MergeSection, TuningSection
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import EventWriter, read_events
from alignflow.stages.spec import StageResult, StageSpec


@pytest.fixture(scope="module")
def trained(
    prepared: Artifact, sft_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    home = tmp_path_factory.mktemp("trained")
    make = {
        name: run_and_publish(make_spec(prepared, home, name, sft=sft_artifact))
        for name in ("reward", "dpo")
    }
    return {"data": prepared, "sft": sft_artifact, "aligned": make["dpo"], "reward": make["reward"]}


def spec_of(stage: str, home: Path, inputs: dict[str, Artifact], **params: Any) -> StageSpec:
    return StageSpec(
        stage=stage,
        home=str(home),
        seed=0,
        params={
            "tuning": TuningSection(rank=4).model_dump(mode="json"),
            "dtype": "float32",
            **params,
        },
        inputs={role: artifact.ref() for role, artifact in inputs.items()},
    )


def section(**changes: Any) -> dict[str, Any]:
    settings = {
        "metrics": ["exact_match", "overlap"],
        "max_new_tokens": 6,
        "bootstrap_resamples": 100,
    }
    return EvaluationSection.model_validate(settings | changes).model_dump(mode="json")


def run(module: Any, spec: StageSpec) -> StageResult:
    work = work_of(spec)
    (work / "output").mkdir(parents=True, exist_ok=True)
    events = EventWriter(work / "events.jsonl", 1)
    try:
        return module.run(spec, work, events)
    finally:
        events.close()


def test_every_model_gets_its_figures_intervals_and_responses(
    trained: dict[str, Artifact], tmp_path: Path
) -> None:
    spec = spec_of("evaluate", tmp_path, trained, section=section())
    result = run(suite, spec)
    for model in ("base", "sft", "aligned"):
        for metric in (
            "accuracy",
            "exact_match",
            "overlap",
            "sampled_accuracy",
            "sampled_overlap",
            "perplexity_general",
            "response_length",
        ):
            value = result.metrics[f"{model}/{metric}"]
            low, high = result.details["intervals"][model][metric]
            assert value is not None and low <= value + 1e-9 and value <= high + 1e-9
    assert "aligned/kl_to_sft" in result.metrics and "aligned/win_rate" in result.metrics
    assert "unsafe_rate" not in result.details["evaluation"]["sft"]  # this metric knows none
    rows = pq.read_table(work_of(spec) / "output" / "responses.parquet").to_pylist()
    assert len(rows) == 3 * 8
    assert {"model", "prompt_index", "greedy", "sampled", "greedy_correct"} <= set(rows[0])
    first = result.details["samples"][0]
    assert list(first) == ["question", "target", "base", "sft", "aligned", "scores"]
    scored = {row["model"]: row["greedy_correct"] for row in rows if not row["prompt_index"]}
    assert first["scores"] == scored and set(scored) == {"base", "sft", "aligned"}
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_an_unchanged_model_is_not_evaluated_again_and_a_changed_setting_counts(
    trained: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("evaluate", tmp_path, trained, section=section())
    first = run(suite, spec)
    loads: list[Any] = []
    original = suite.load_policy
    monkeypatch.setattr(suite, "load_policy", lambda *a, **k: loads.append(a) or original(*a, **k))
    assert run(suite, spec) == first
    assert loads == []
    run(suite, spec_of("evaluate", tmp_path, trained, section=section(max_new_tokens=5)))
    assert len(loads) == 5  # three models, and two for the KL


def test_progress_ends_at_all_responses(trained: dict[str, Artifact], tmp_path: Path) -> None:
    spec = spec_of("evaluate", tmp_path, trained, section=section())
    run(suite, spec)
    progress = [
        (event["done"], event["total"])
        for event in read_events(work_of(spec) / "events.jsonl")
        if event["kind"] == "progress"
    ]
    assert progress == sorted(progress)
    assert progress[-1] == (48, 48)


def test_no_model_to_evaluate_is_an_error(prepared: Artifact, tmp_path: Path) -> None:
    spec = spec_of("evaluate", tmp_path, {"data": prepared}, section=section(models=["sft"]))
    with pytest.raises(EvaluationError, match="makes none of them"):
        run(suite, spec)


def test_the_merged_model_is_certified_reloaded_and_scores_as_the_adapter_did(
    trained: dict[str, Artifact], tmp_path: Path
) -> None:
    inputs = {role: trained[role] for role in ("data", "sft", "aligned")}
    judged = run(suite, spec_of("evaluate", tmp_path, inputs, section=section()))
    spec = spec_of(
        "merge",
        tmp_path,
        inputs,
        section=MergeSection(dtype="float32").model_dump(mode="json"),
        evaluation=section(),
    )
    result = run(merging, spec)
    for metric, value in judged.details["evaluation"]["aligned"].items():
        if metric != "kl_to_sft":
            assert result.metrics[f"merged/{metric}"] == pytest.approx(value, rel=1e-3), metric
    model = work_of(spec) / "output" / "model"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        assert (model / name).is_file(), name
    assert json.loads((model / "merge_certificate.json").read_text())["status"] == "passed"
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(str(model)).chat_template


def test_a_failed_certificate_stops_the_stage_with_its_figures(
    trained: dict[str, Artifact], tmp_path: Path
) -> None:
    spec = spec_of(
        "merge",
        tmp_path,
        {role: trained[role] for role in ("data", "aligned")},
        section=MergeSection(dtype="bfloat16", max_kl=1e-15).model_dump(mode="json"),
        evaluation=section(),
    )
    with pytest.raises(CertificateError, match=r"merge\.max_kl 1e-15"):
        run(merging, spec)
