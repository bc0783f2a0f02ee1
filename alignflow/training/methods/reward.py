"""Stage `reward`: an adapter and a scalar head on the frozen base; Bradley-Terry loss on pairs.

The adapter starts from the SFT adapter's weights, so that it reads the responses the policy writes;
it stays an adapter of the one base that all stages share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from alignflow.models.adapters import new_adapter
from alignflow.models.loading import check_adapter, load_scorer, quiet
from alignflow.recipe import RewardSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import Job, account, read_job, train, training_arguments
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.preferences import (
    agreement,
    by_length,
    longest,
    pair_rows,
    sft_source,
)
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.trainer import ThinTrainer


class Trainer(ThinTrainer, RewardTrainer):
    """TRL's, on pairs that are token ids already."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, RewardSection)
    rows, held_out = pair_rows(job, "train"), pair_rows(job, "held_out")
    model = _scorer(job)
    arguments = training_arguments(
        RewardConfig,
        job,
        len(rows),
        center_rewards_coefficient=job.section.center_rewards_coefficient,
        disable_dropout=job.tuning.dropout == 0,
    )
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_dataset(rows),
            processing_class=job.tokenizer,
        )
    trainer.lengths = [longest(row) for row in rows]
    trainer.effective_batch_size = job.section.batch_size
    make_ready(trainer, job)
    params = parameters(model, job, arguments)
    last = train(trainer, job)
    margins = _margins(trainer, held_out)
    metrics, details = agreement(margins, [row["prompt"] for row in held_out], spec.seed)
    save(model, job)
    return StageResult(
        metrics={**metrics, "loss": last.get("loss"), "train_accuracy": last.get("accuracy")},
        rows=account(job, "preferences", len(rows), len(held_out)),
        params=params,
        details={**details, "steps": trainer.state.global_step},
    )


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Whole sequences: TRL's reward trainer takes prompt and response in one."""
    return Dataset.from_list(
        [
            {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")}
            for row in rows
        ]
    )


def _scorer(job: Job[RewardSection]) -> Any:
    adapter, sft_model = sft_source(job)
    model = load_scorer(
        str(sft_model or job.base.path), dtype=job.weights_dtype, quantization=job.quantization
    )
    model.config.pad_token_id = job.tokenizer.pad_token_id
    if job.tuning.mode == "full":
        return model
    if adapter is not None:
        check_adapter(adapter, job.base)
    model = new_adapter(model, job.tuning, "SEQ_CLS", like=adapter)
    if adapter is not None:
        _start_from(model, adapter)
    return model


def _start_from(model: Any, adapter: Path) -> None:
    """Copies an adapter's weights; the head stays as drawn."""
    weights = load_file(str(adapter / "adapter_model.safetensors"))
    with quiet():
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
        set_peft_model_state_dict(model, {**own, **weights})


@torch.no_grad()
def _margins(trainer: Trainer, rows: list[dict[str, Any]]) -> list[float]:
    """Reward of the chosen minus that of the rejected response, in the order of the rows."""
    model: Any = trainer.model
    model.eval()
    margins = [0.0] * len(rows)
    pairs = _dataset(rows).to_list() if rows else []
    for chunk in by_length(
        [longest(row) for row in rows], 2 * trainer.args.per_device_train_batch_size
    ):
        batch = trainer.data_collator([pairs[index] for index in chunk])
        with trainer.accelerator.autocast():
            logits = model(**trainer._prepare_inputs(batch)).logits
        chosen, rejected = logits.squeeze(-1).float().chunk(2)
        for index, margin in zip(chunk, (chosen - rejected).tolist(), strict=True):
            margins[index] = margin
    return margins
