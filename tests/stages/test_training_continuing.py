"""A retrain's policy continues the champion's; its reference stays the lineage's SFT model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import logged, make_spec, run_and_publish, run_stage, work_of

from alignflow.errors import ArtifactError
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec

MakeSpec = Callable[..., StageSpec]
SHORT = """
def short(prompts, responses, targets):
    return [-float(len(response)) for response in responses]
"""
STILL = 1e-9
"""A learning rate that moves nothing that can be seen."""


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(str(directory / "adapter" / "adapter_model.safetensors"))


def differ(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def continuing(spec: StageSpec, champion: Artifact) -> StageSpec:
    return spec.model_copy(update={"inputs": {**spec.inputs, "init": champion.ref()}})


@pytest.fixture(scope="module")
def champion_of(
    prepared: Artifact, sft_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Artifact]:

    made: dict[str, Artifact] = {}

    def champion(stage: str) -> Artifact:
        if stage not in made:
            home = tmp_path_factory.mktemp(stage)
            spec = make_spec(prepared, home, stage, sft=sft_artifact, learning_rate=1e-2)
            made[stage] = run_and_publish(spec)
        return made[stage]

    return champion


ONLINE = {"batch_size": 8, "num_generations": 4, "max_new_tokens": 4}


@pytest.mark.parametrize("stage", ["dpo", "simpo", "kto", "grpo"])
def test_the_policy_starts_from_the_champion_and_not_from_the_reference(
    stage: str,
    tmp_path: Path,
    training_spec: MakeSpec,
    sft_artifact: Artifact,
    champion_of: Callable[[str], Artifact],
) -> None:
    champion = champion_of("dpo")
    own: dict[str, Any] = {"learning_rate": STILL, "max_steps": 1}
    if stage == "grpo":
        reward = tmp_path / "short.py"
        reward.write_text(SHORT)
        own |= {**ONLINE, "rewards": [f"{reward}:short"]}
    spec = continuing(training_spec(stage, sft=sft_artifact, **own), champion)
    run_stage(spec)
    trained = adapter(work_of(spec) / "output")
    assert differ(trained, adapter(champion.directory)) < 1e-6
    assert differ(trained, adapter(sft_artifact.directory)) > 1e-4


def test_reference_log_probabilities_are_the_sft_models_and_are_kept_over_the_lineage(
    training_spec: MakeSpec, sft_artifact: Artifact, champion_of: Callable[[str], Artifact]
) -> None:
    champion = champion_of("dpo")
    home = Path(champion.spec.home)
    spec = training_spec("dpo", home=home, sft=sft_artifact, learning_rate=STILL)
    result = run_stage(continuing(spec, champion))
    assert result.params["reference_logps_computed"] == 0


def test_a_champion_of_another_shape_is_refused_with_what_to_do(
    training_spec: MakeSpec, champion_of: Callable[[str], Artifact]
) -> None:
    spec = training_spec("dpo", tuning={"rank": 8})
    with pytest.raises(ArtifactError, match="start_from: base"):
        run_stage(continuing(spec, champion_of("dpo")))


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward", "grpo"])
def test_on_nf4_a_policy_starts_from_the_very_weights_that_its_reference_has(
    stage: str, prepared: Artifact, sft_artifact: Artifact, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-12}
    if stage == "grpo":
        source = tmp_path / "short.py"
        source.write_text(SHORT)
        options |= {**ONLINE, "rewards": [f"{source}:short"]}
    if stage == "sft":
        options["tuning"] = {"init_adapter": str(sft_artifact.directory / "adapter")}
    start = None if stage == "sft" else sft_artifact
    spec = make_spec(prepared, tmp_path, stage, mode="qlora", sft=start, **options)
    run_stage(spec)
    ours, given = adapter(work_of(spec) / "output"), adapter(sft_artifact.directory)
    assert max(float((ours[name] - given[name]).abs().max()) for name in given) < 1e-9
    if stage == "dpo":
        assert logged(spec, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)
