"""Our stages against TRL's own trainers on the same rows, from text to the losses of three steps.

All rows are in every batch, so that their order does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from stage_runs import logged, run_stage
from transformers import AutoTokenizer, set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignflow.data.stored import StoredRows
from alignflow.models.loading import load_base, load_scorer, quiet, read_base
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec

Make = Callable[..., StageSpec]
STEPS = 3
# TRL's own call of a name that Transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
LOSSES = {
    "sigmoid": {"loss_type": ["sigmoid"]},
    "sigmoid+sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "ipo": {"loss_type": ["ipo"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
}


def our_losses(spec: StageSpec) -> list[float]:
    run_stage(spec)
    return logged(spec, "loss")


def stock_losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def stock_arguments(folder: Path, rows: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": rows,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        "dataloader_pin_memory": False,
    }


def rows_of(prepared: Artifact, part: str) -> Dataset:
    """The rows trained on, as messages; TRL applies the chat template itself."""
    trained = [row["prompt"] for row in StoredRows.of(prepared.directory / part / "train")]
    lines = [
        line
        for line in Path(prepared.spec.params["data"][part][0]).read_text().splitlines()
        if any(json.loads(line)["prompt"] in prompt for prompt in trained)
    ]
    assert len(lines) == len(trained)
    role = {"prompt": "user"}
    return Dataset.from_list(
        [
            {
                name: [{"role": role.get(name, "assistant"), "content": text}]
                for name, text in json.loads(line).items()
            }
            for line in lines
        ]
    )


def settings(rows: int, **more: Any) -> dict[str, Any]:
    return {
        "mode": "full",
        "batch_size": rows,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "compute": {"micro_batch_size": rows},
        **more,
    }


def test_sft_equals_trl(training_spec: Make, prepared: Artifact, tmp_path: Path) -> None:
    rows = rows_of(prepared, "sft")
    ours = our_losses(training_spec("sft", **settings(len(rows))))
    base = read_base(prepared.directory)
    trainer = SFTTrainer(
        model=load_base(base, dtype="float32", quantization=None),
        args=SFTConfig(**stock_arguments(tmp_path, len(rows))),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base.path),
    )
    assert ours == pytest.approx(stock_losses(trainer), abs=1e-4)


def test_the_reward_model_equals_trl(
    training_spec: Make, prepared: Artifact, tmp_path: Path
) -> None:
    rows = rows_of(prepared, "preferences")
    ours = our_losses(training_spec("reward", **settings(len(rows))))
    base = read_base(prepared.directory)
    set_seed(0)
    trainer = RewardTrainer(
        model=load_scorer(base, None, dtype="float32", quantization=None),
        args=RewardConfig(center_rewards_coefficient=0.01, **stock_arguments(tmp_path, len(rows))),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base.path),
    )
    assert ours == pytest.approx(stock_losses(trainer), abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_dpo_equals_trl(training_spec: Make, prepared: Artifact, tmp_path: Path, loss: str) -> None:
    rows = rows_of(prepared, "preferences")
    ours = our_losses(training_spec("dpo", **settings(len(rows), **LOSSES[loss])))
    base = read_base(prepared.directory)
    with quiet():
        trainer = DPOTrainer(
            model=load_base(base, dtype="float32", quantization=None),
            ref_model=load_base(base, dtype="float32", quantization=None),
            args=DPOConfig(**LOSSES[loss], **stock_arguments(tmp_path, len(rows))),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(base.path),
        )
    assert ours == pytest.approx(stock_losses(trainer), abs=1e-4)
