"""Stage `kto`: Kahneman-Tversky optimization of single responses, liked or not (arXiv:2402.01306).

TRL's trainer, on rows that are token ids already. The reference is what the policy starts from.
The KL term needs responses to other prompts: they are those of the micro-batch, each moved on by one,
as in the paper, so the micro-batch is part of the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

from alignflow.models.loading import quiet
from alignflow.recipe import KTOSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import (
    Job,
    account,
    read_job,
    read_rows,
    train,
    training_arguments,
)
from alignflow.training.engine.continuing import continue_from_champion
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.preferences import (
    by_length,
    pair_rows,
    split_within,
    starting_policy,
)
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.trainer import ThinTrainer


class Collator(DataCollatorForUnpairedPreference):
    """TRL's, with the responses of the batch moved on by one for the KL term."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        before = [examples[-1], *examples[:-1]]
        moved = [
            {**example, "KL_completion_ids": other["completion_ids"]}
            for example, other in zip(examples, before, strict=True)
        ]
        return super().torch_call(moved)


class Trainer(ThinTrainer, KTOTrainer):
    """TRL's, on responses that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, KTOSection)
    rated = (spec.input("data") / "ratings").is_dir()
    rows, held_out = _rows(job, "train", rated), _rows(job, "held_out", rated)
    model = starting_policy(job)
    trainer = _trainer(job, model, rows)
    make_ready(trainer, job)
    continue_from_champion(model, job)
    params = parameters(model, job, trainer.args)
    last = train(trainer, job)
    auc = ranking_auc(_rewards(trainer, held_out), [row["label"] for row in held_out])
    if job.tuning.mode != "full":
        model.delete_adapter("ref")
        model.set_adapter("default")
    save(model, job)
    sides = 1 if rated else 2
    return StageResult(
        metrics={"rating_auc": auc, "loss": last.get("loss"), "kl": last.get("kl")},
        rows=account(
            job,
            "ratings" if rated else "preferences",
            len(rows) // sides,
            len(held_out) // sides,
        ),
        params={**params, "liked": sum(row["label"] for row in rows)},
        details={"held_out_responses": len(held_out), "steps": trainer.state.global_step},
    )


def _rows(job: Job[KTOSection], name: str, rated: bool) -> list[dict[str, Any]]:
    """Responses of `train` or `held_out` with their label; those of training must not run out."""
    if not rated:
        return [
            {
                "prompt_ids": pair["prompt_ids"],
                "completion_ids": pair[f"{side}_ids"],
                "label": liked,
            }
            for pair in pair_rows(job, name)
            for side, liked in (("chosen", True), ("rejected", False))
        ]
    columns = ("prompt_ids", "completion_ids", "label")
    found = read_rows(job.spec.input("data") / "ratings" / f"{name}.parquet")
    rows = [{column: row[column] for column in columns} for row in found]
    return split_within(name, rows, [length_of(row) for row in rows], job.section.max_length)


def length_of(row: dict[str, Any]) -> int:
    """Tokens of prompt and response."""
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def _trainer(job: Job[KTOSection], model: Any, rows: list[dict[str, Any]]) -> Trainer:
    section = job.section
    arguments = training_arguments(
        KTOConfig,
        job,
        len(rows),
        beta=section.beta,
        loss_type=section.loss_type,
        desirable_weight=section.desirable_weight,
        undesirable_weight=section.undesirable_weight,
        disable_dropout=job.tuning.dropout == 0,
    )
    with quiet():
        trainer = Trainer(
            model=model,
            ref_model=starting_policy(job) if job.tuning.mode == "full" else None,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=job.tokenizer,
            data_collator=Collator(job.tokenizer.pad_token_id),
        )
    trainer.lengths = [length_of(row) for row in rows]
    trainer.effective_batch_size = section.batch_size
    return trainer


@torch.no_grad()
def _rewards(trainer: Trainer, rows: list[dict[str, Any]]) -> list[float]:
    """Beta times the log-ratio of each response to the reference, in the order of the rows."""
    model: Any = trainer.model
    model.eval()
    rewards = [0.0] * len(rows)
    collate: Any = trainer.data_collator
    lengths = [length_of(row) for row in rows]
    for chunk in by_length(lengths, 2 * trainer.args.per_device_train_batch_size):
        batch = trainer._prepare_inputs(collate([rows[at] for at in chunk]))
        reference = trainer.ref_model if trainer.ref_model is not None else model
        with quiet():
            before, _ = trainer.compute_ref_log_probs(reference, batch)
        with trainer.accelerator.autocast():
            after = _logps(model, batch)
        for at, reward in zip(chunk, (trainer.beta * (after - before)).tolist(), strict=True):
            rewards[at] = reward
    return rewards


def _logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    scored = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )
    return scored.log_probs.sum(dim=1).float()


def ranking_auc(rewards: list[float], liked: list[bool]) -> float | None:
    """Share of pairs of a liked and a disliked response that the rewards rank rightly; ties half.

    None where one kind is missing. Rewards 3, 1 liked and 2 disliked: one of two pairs, 0.5.
    """
    values, labels = np.asarray(rewards), np.asarray(liked, dtype=bool)
    good, bad = values[labels], values[~labels]
    if not len(good) or not len(bad):
        return None
    bad = np.sort(bad)
    below = np.searchsorted(bad, good, side="left")
    up_to = np.searchsorted(bad, good, side="right")
    return float((below + up_to).sum() / (2 * len(good) * len(bad)))
