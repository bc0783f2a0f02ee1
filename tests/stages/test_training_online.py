"""RLOO and GRPO: they raise the reward, score token ids, and end the same after a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from stage_runs import logged, logs_of, make_spec, run_and_publish, run_stage, work_of

from alignflow.errors import DataError
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec

FUNCTION = """
def short(prompts, responses, targets):
    return [-float(len(response)) for response in responses]
"""
SMALL: dict[str, Any] = {
    "batch_size": 16,
    "num_generations": 4,
    "max_new_tokens": 6,
    "max_steps": 3,
}


@pytest.fixture
def short(tmp_path: Path) -> str:
    """A reward that likes short responses."""
    path = tmp_path / "short.py"
    path.write_text(FUNCTION)
    return f"{path}:short"


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
@pytest.mark.parametrize("stage", ["rloo", "grpo"])
def test_each_method_trains_in_each_mode_and_accounts_for_every_row(
    prepared: Artifact, tmp_path: Path, short: str, stage: str, mode: str
) -> None:
    spec = make_spec(prepared, tmp_path, stage, mode=mode, rewards=[short], **SMALL)
    result = run_stage(spec)
    output = work_of(spec) / "output"
    assert [path.name for path in output.iterdir()] == ["model" if mode == "full" else "adapter"]
    assert not list(output.rglob("ref"))
    assert result.rows is not None and result.rows.balanced and result.rows.read == 60
    assert result.details["episodes"] == 48
    assert all(math.isfinite(reward) for reward in logged(spec, "reward"))


@pytest.mark.parametrize("stage", ["rloo", "grpo"])
def test_the_reward_rises(prepared: Artifact, tmp_path: Path, short: str, stage: str) -> None:
    settings = {**SMALL, "batch_size": 32, "max_steps": 12, "learning_rate": 1e-2, "beta": 0.0}
    spec = make_spec(prepared, tmp_path, stage, mode="full", rewards=[short], **settings)
    run_stage(spec)
    found = logged(spec, "reward")
    assert sum(found[-3:]) / 3 > sum(found[:3]) / 3 + 0.8


def reward_artifact(prepared: Artifact, home: Path, accuracy: float) -> Artifact:
    """A real reward model; its accuracy is rewritten, so that the test does not depend on it."""
    artifact = run_and_publish(make_spec(prepared, home, "reward"))
    interval = [accuracy - 0.04, accuracy + 0.04]
    result = artifact.result.model_copy(
        update={
            "metrics": {**artifact.result.metrics, "preference_accuracy": accuracy},
            "details": {**artifact.result.details, "preference_accuracy_interval": interval},
        }
    )
    import json

    path = artifact.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["result"] = result.model_dump(mode="json")
    path.write_text(json.dumps(manifest))
    return artifact


def with_reward(spec: StageSpec, reward: Artifact) -> StageSpec:
    return spec.model_copy(update={"inputs": {**spec.inputs, "reward": reward.ref()}})


def test_a_reward_model_and_a_function_are_added_up_by_weight(
    prepared: Artifact, tmp_path: Path, short: str
) -> None:
    reward = reward_artifact(prepared, tmp_path, 0.9)
    terms = [{"source": "reward_model", "weight": 2.0}, {"source": short, "weight": 0.5}]
    spec = with_reward(make_spec(prepared, tmp_path, "rloo", rewards=terms, **SMALL), reward)
    run_stage(spec)
    first = logs_of(spec)[0]
    parts = {
        name: next(value for key, value in first.items() if key == f"rewards/{name}/mean")
        for name in ("reward_model", "short")
    }
    assert first["reward"] == pytest.approx(
        2 * parts["reward_model"] + 0.5 * parts["short"], abs=1e-3
    )


def test_a_weak_reward_model_is_not_optimized(prepared: Artifact, tmp_path: Path) -> None:
    reward = reward_artifact(prepared, tmp_path, 0.52)
    spec = with_reward(make_spec(prepared, tmp_path, "grpo", **SMALL), reward)
    with pytest.raises(DataError, match=r"ranks 52.0% of held-out pairs rightly.*GRPO needs 55.0%"):
        run_stage(spec)
