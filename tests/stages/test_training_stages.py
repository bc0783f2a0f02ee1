"""Training stages on the tiny model."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage_runs import cases, logged, logs_of, run_stage, work_of

from alignflow.data.stored import StoredRows
from alignflow.errors import ArtifactError, NumericsError, Preempted, RecipeError
from alignflow.files import sha256_file
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import read_events
from alignflow.stages.spec import StageSpec

Make = Callable[..., StageSpec]


def adapter_digest(spec: StageSpec) -> str:
    return sha256_file(work_of(spec) / "output" / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_each_stage_trains_in_each_mode_and_accounts_for_every_row(
    training_spec: Make, stage: str, mode: str
) -> None:
    spec = training_spec(stage, mode=mode)
    result = run_stage(spec)
    output = work_of(spec) / "output"
    assert [path.name for path in output.iterdir()] == ["model" if mode == "full" else "adapter"]
    assert not list(work_of(spec).rglob("ref"))
    assert result.rows is not None and result.rows.balanced
    assert result.rows.read == {"sft": 48}.get(stage, 60)
    assert result.metrics["loss"] is not None
    assert all(math.isfinite(value) for value in result.metrics.values() if value is not None)
    assert result.params["quantization"] == ("nf4" if mode == "qlora" else "none")
    events = read_events(work_of(spec) / "events.jsonl")
    steps = [event["done"] for event in events if event.get("unit") == "steps"]
    assert steps == [0, 1, 2, 3]
    assert [event["step"] for event in events if event["kind"] == "metrics"] == [1, 2, 3]


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_stage_after_sft_starts_from_its_adapter(
    training_spec: Make, sft_artifact: Artifact, stage: str
) -> None:
    from safetensors.torch import load_file

    spec = training_spec(stage, sft=sft_artifact, learning_rate=1e-9, max_steps=1)
    run_stage(spec)
    name = "adapter/adapter_model.safetensors"
    before = load_file(str(sft_artifact.directory / name))
    after = load_file(str(work_of(spec) / "output" / name))
    assert all((after[key] - value).abs().max() < 1e-6 for key, value in before.items())


def test_at_the_first_step_dpo_equals_its_reference(
    training_spec: Make, sft_artifact: Artifact
) -> None:
    spec = training_spec("dpo", sft=sft_artifact, loss_type="sigmoid")
    run_stage(spec)
    first = logs_of(spec)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_reference_log_probabilities_are_computed_once_across_runs(
    training_spec: Make, sft_artifact: Artifact
) -> None:
    first = run_stage(training_spec("dpo", sft=sft_artifact))
    second = run_stage(training_spec("dpo", sft=sft_artifact, beta=0.3))
    assert first.params["reference_logps_computed"] == 60
    assert second.params["reference_logps_computed"] == 0


def test_the_micro_batch_changes_no_result_beyond_rounding(training_spec: Make) -> None:
    from safetensors.torch import load_file

    weights = []
    for size in (8, 2):
        spec = training_spec("sft", compute={"micro_batch_size": size})
        run_stage(spec)
        path = work_of(spec) / "output" / "adapter" / "adapter_model.safetensors"
        weights.append(load_file(str(path)))
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().max() < 2e-4, name


def test_the_adapter_config_is_sorted_and_names_no_path(
    training_spec: Make, sft_artifact: Artifact
) -> None:
    config = json.loads((sft_artifact.directory / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    named = json.loads((sft_artifact.directory / "adapter" / "base_model.json").read_text())
    assert config["base_model_name_or_path"] == named["source"]


def test_an_adapter_of_another_base_is_refused(
    training_spec: Make, sft_artifact: Artifact, tmp_path: Path
) -> None:
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(sft_artifact.directory / "adapter", foreign)
    (foreign / "base_model.json").write_text(json.dumps({"source": "x", "digest": "1" * 64}))
    with pytest.raises(ArtifactError, match="trained on a base model"):
        run_stage(training_spec("sft", tuning={"init_adapter": str(foreign)}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"learning_rat": 1}, "no argument 'learning_rat'"), ({"seed": 1}, "the recipe's seed")],
)
def test_a_trainer_argument_that_is_not_ours_to_pass_is_named(
    training_spec: Make, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_stage(training_spec("sft", trainer_args=arguments))


def test_unknown_target_modules_are_named_with_those_there_are(training_spec: Make) -> None:
    with pytest.raises(RecipeError, match=r"no linear layer wq.*q_proj"):
        run_stage(training_spec("sft", tuning={"target_modules": ["wq"]}))


def test_a_loss_that_is_not_finite_stops_at_its_step(
    training_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    original = SFTTrainer.compute_loss

    def poisoned(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = original(self, *arguments, **options)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", poisoned)
    with pytest.raises(NumericsError, match="loss is NaN or inf at step 2"):
        run_stage(training_spec("sft"))


def _terminate_at(spec: StageSpec, step: int, sign: int) -> None:
    from alignflow.training.engine.callbacks import Report

    original = Report.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        original(self, args, state, control, **options)
        if state.global_step == step:
            os.kill(os.getpid(), sign)
            time.sleep(0.01)

    Report.on_step_end = on_step_end  # type: ignore[method-assign]
    run_stage(spec)


LONG = {"max_steps": 8, "save_steps": 2, "tuning": {"dropout": 0.1}}


@pytest.mark.parametrize("stage", cases(("sft", "dpo"), "dpo"))
def test_killed_training_continues_and_ends_bit_identical(
    training_spec: Make, tmp_path: Path, stage: str
) -> None:
    whole = training_spec(stage, home=tmp_path / "whole", **LONG)
    run_stage(whole)
    killed = training_spec(stage, home=tmp_path / "killed", **LONG)
    process = multiprocessing.get_context("spawn").Process(
        target=_terminate_at, args=(killed, 5, signal.SIGKILL)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    newest = work_of(killed) / "checkpoints" / "checkpoint-4"
    (newest / "optimizer.pt").write_bytes(b"damaged")
    run_stage(killed, attempt=2)
    assert adapter_digest(killed) == adapter_digest(whole)
    text = (work_of(killed) / "events.jsonl").read_text()
    assert "Continues from step 2." in text
    assert [p.name for p in newest.parent.glob("bad-*")] == ["bad-checkpoint-4-0"]


def test_on_sigterm_a_checkpoint_is_saved_and_the_next_attempt_continues(
    training_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignflow.training.engine.callbacks import Report

    monkeypatch.setattr(Report, "on_step_end", Report.on_step_end)
    spec = training_spec("sft", **LONG)
    with pytest.raises(Preempted, match="step 3 of 8"):
        _terminate_at(spec, 3, signal.SIGTERM)
    monkeypatch.undo()
    run_stage(spec, attempt=2)
    assert "Continues from step 3." in (work_of(spec) / "events.jsonl").read_text()


def test_the_first_sft_loss_is_the_mean_cross_entropy_of_response_tokens(
    training_spec: Make, prepared: Artifact
) -> None:
    """Every row is in the one batch, so that their order does not matter."""
    import torch

    from alignflow.models.loading import load_base, read_base

    spec = training_spec("sft", batch_size=48, max_steps=1, compute={"micro_batch_size": 12})
    run_stage(spec)
    loss = logged(spec, "loss")[0]
    model = load_base(read_base(prepared.directory), dtype="float32", quantization=None)
    total, count = 0.0, 0
    for row in StoredRows.of(prepared.directory / "sft" / "train"):
        with torch.no_grad():
            logps = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for at in range(1, len(row["input_ids"])):
            if row["completion_mask"][at]:
                total -= float(logps[at - 1, row["input_ids"][at]])
                count += 1
    assert loss == pytest.approx(total / count, abs=1e-4)


def test_a_saved_reward_model_loads_with_one_score_a_row(
    training_spec: Make, prepared: Artifact, sft_artifact: Artifact
) -> None:
    import torch

    from alignflow.models.loading import load_reward_model, read_base

    spec = training_spec("reward", sft=sft_artifact, learning_rate=1e-2)
    run_stage(spec)
    base = read_base(prepared.directory)
    model = load_reward_model(
        base, work_of(spec) / "output", dtype="float32", quantization=None
    ).eval()
    logits = model(input_ids=torch.tensor([[0, 5, 6], [0, 7, 8]])).logits
    assert logits.shape == (2, 1) and logits[0, 0] != logits[1, 0]
