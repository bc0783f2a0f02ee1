"""Optimizers by recipe: 8-bit moments, bfloat16 weights rounded by chance, LoRA+'s two rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import run_stage, work_of
from torch import nn

from alignflow.errors import RecipeError
from alignflow.files import sha256_file
from alignflow.recipe import SFTSection
from alignflow.stages.spec import StageSpec
from alignflow.training.engine.optimizers import new_optimizer, split_factors
from alignflow.training.engine.stochastic_rounding import StochasticRounding

Make = Callable[..., StageSpec]
THIN = {"mode": "full", "weights_dtype": "bfloat16"}


def interrupted(spec: StageSpec, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a stage that ends without a word after `step` updates."""
    from alignflow.training.engine.callbacks import Report

    original = Report.on_step_end

    def fail(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Report, "on_step_end", fail)
    with pytest.raises(KeyboardInterrupt):
        run_stage(spec)
    monkeypatch.setattr(Report, "on_step_end", original)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_bfloat16_weights_are_rounded_by_chance_and_resume_bit_identical(
    training_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    options: dict[str, Any] = {
        "tuning": THIN,
        "optimizer": optimizer,
        "max_steps": 5,
        "save_steps": 2,
        "learning_rate": 1e-4,
    }
    whole = training_spec("sft", home=tmp_path / "whole", **options)
    result = run_stage(whole)
    broken = training_spec("sft", home=tmp_path / "broken", **options)
    interrupted(broken, 3, monkeypatch)
    state = torch.load(work_of(broken) / "checkpoints/checkpoint-2/optimizer.pt", weights_only=True)
    assert "rounding" in state
    kinds = {
        v.dtype for entry in state["state"].values() for v in entry.values() if hasattr(v, "dtype")
    }
    assert torch.bfloat16 not in kinds
    run_stage(broken, attempt=2)
    file = "output/model/model.safetensors"
    assert sha256_file(work_of(broken) / file) == sha256_file(work_of(whole) / file)
    weights = load_file(str(work_of(whole) / file))
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert (result.params["optimizer"], result.params["weights_dtype"]) == (optimizer, "bfloat16")


@pytest.mark.parametrize("tuning", [THIN, {"adapter_dtype": "bfloat16"}])
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_every_stage_takes_bfloat16_weights_and_8_bit_moments(
    training_spec: Make, stage: str, tuning: dict[str, Any]
) -> None:
    result = run_stage(training_spec(stage, tuning=tuning, optimizer="adamw_8bit"))
    assert result.metrics["loss"] is not None


def test_8_bit_moments_take_a_quarter(training_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only weights of at least 4096 numbers; embeddings stay in 32 bits."""
    from alignflow.training.engine import loop

    seen: list[torch.optim.Optimizer] = []
    original = loop.set_optimizer

    def remember(trainer: Any, *arguments: Any) -> None:
        original(trainer, *arguments)
        seen.append(trainer.optimizer)

    monkeypatch.setattr(loop, "set_optimizer", remember)
    run_stage(training_spec("sft", mode="lora", tuning={"rank": 128}, optimizer="adamw_8bit"))
    states = {p.numel(): state for p, state in seen[0].state.items()}
    large = states[128 * 64]
    assert (large["state1"].dtype, large["state2"].dtype) == (torch.uint8, torch.uint8)
    assert len(large["state1"].flatten()) == 128 * 64


def test_trainer_args_cannot_name_another_optimizer(training_spec: Make) -> None:
    with pytest.raises(RecipeError, match="optim is set by optimizer"):
        run_stage(training_spec("sft", trainer_args={"optim": "sgd"}))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})


def test_a_loop_of_our_own_gets_the_same_choices() -> None:
    model = nn.ModuleDict({"q": Pair()})
    weights = list(model.parameters())
    groups = split_factors(model, {"params": weights, "peak": 1e-3}, 16.0)
    assert [(group["peak"], len(group["params"])) for group in groups] == [(1e-3, 1), (16e-3, 1)]
    assert groups[1]["params"][0] is weights[1]
    assert split_factors(model, {"params": weights, "peak": 1.0}, None)[0]["params"] == weights
    section = SFTSection(optimizer="paged_adamw_8bit")
    made = new_optimizer(section, groups, seed=0, lr=0.0)
    assert type(made).__module__.startswith("bitsandbytes")
    model.to(torch.bfloat16)
    made = new_optimizer(SFTSection(), groups, seed=0, lr=0.0)
    assert isinstance(made, StochasticRounding) and isinstance(made.inner, torch.optim.AdamW)
