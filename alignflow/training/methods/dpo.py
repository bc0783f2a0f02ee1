"""Stage `dpo`: direct preference optimization; the reference is what the policy starts from.

The policy continues the SFT adapter. Its start is the reference: a frozen copy that TRL makes gives
the reference log-probabilities of each row once, and is then dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from alignflow.files import digest_directory
from alignflow.models.loading import quiet, trainable_in
from alignflow.recipe import DPOSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec, library_versions
from alignflow.training.engine.common import (
    Job,
    account,
    memory_errors,
    read_job,
    train,
    training_arguments,
)
from alignflow.training.engine.continuing import continue_from_champion
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.preferences import (
    agreement,
    by_length,
    longest,
    pair_rows,
    sft_source,
    starting_policy,
)
from alignflow.training.engine.reference import ReferenceCache
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.trainer import ThinTrainer


class Trainer(ThinTrainer, DPOTrainer):
    """TRL's, on pairs that are token ids and carry their reference log-probabilities."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, DPOSection)
    rows, held_out = pair_rows(job, "train"), pair_rows(job, "held_out")
    model = starting_policy(job)
    trainer = _trainer(job, model, rows)
    make_ready(trainer, job)
    params = parameters(model, job, trainer.args)
    cache = reference_logps(job, trainer, [*rows, *held_out])
    params["reference_logps_computed"] = cache.computed
    trainer.train_dataset = _dataset(rows, cache)
    if job.tuning.mode != "full":
        model.delete_adapter("ref")
        model.set_adapter("default")
        trainable_in(model, job.tuning.trained_dtype)
    continue_from_champion(model, job)
    last = train(trainer, job)
    margins = _margins(trainer, held_out, cache)
    metrics, details = agreement(margins, [row["prompt"] for row in held_out], spec.seed)
    save(model, job)
    return StageResult(
        metrics={
            **metrics,
            "loss": last.get("loss"),
            "train_accuracy": last.get("rewards/accuracies"),
            "token_accuracy": last.get("mean_token_accuracy"),
        },
        rows=account(job, "preferences", len(rows), len(held_out)),
        params=params,
        details={**details, "steps": trainer.state.global_step},
    )


def _trainer(job: Job[DPOSection], model: Any, rows: list[dict[str, Any]]) -> Trainer:
    section = job.section
    arguments = training_arguments(
        DPOConfig,
        job,
        len(rows),
        beta=section.beta,
        loss_type=list(section.loss_type),
        loss_weights=list(section.weights),
        label_smoothing=section.label_smoothing,
        precompute_ref_log_probs=True,
        disable_dropout=job.tuning.dropout == 0,
    )
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([_ids(row) for row in rows]),
            processing_class=job.tokenizer,
        )
    trainer.lengths = [longest(row) for row in rows]
    trainer.effective_batch_size = section.batch_size
    return trainer


def reference_logps(
    job: Job[DPOSection], trainer: Trainer, rows: list[dict[str, Any]]
) -> ReferenceCache:
    """Log-probabilities of every row under the reference; only new rows are computed."""
    cache = ReferenceCache(Path(job.spec.home), _identity(job, trainer))
    missing = sorted(cache.missing(rows), key=lambda at: longest(rows[at]))
    size = 2 * trainer.args.per_device_train_batch_size
    model: Any = trainer.model
    training = model.training
    model.eval()
    with quiet(), memory_errors(trainer):
        for start in range(0, len(missing), size):
            chunk = [rows[at] for at in missing[start : start + size]]
            batch = trainer._prepare_inputs(trainer.data_collator([_ids(row) for row in chunk]))
            chosen, rejected = trainer.compute_ref_log_probs(model, batch)
            for row, *logps in zip(chunk, chosen.tolist(), rejected.tolist(), strict=True):
                cache.add(row, (logps[0], logps[1]))
            job.events.progress(min(start + size, len(missing)), len(missing), "reference rows")
    model.train(training)
    cache.save()
    return cache


def _identity(job: Job[DPOSection], trainer: Trainer) -> dict[str, Any]:
    """All that the reference's log-probabilities depend on beside token ids."""
    adapter, sft_model = sft_source(job)
    start = adapter or sft_model
    return {
        "base": job.base.digest,
        "start": digest_directory(start) if start else new_start(job),
        "weights_dtype": job.weights_dtype,
        "dtype": job.dtype,
        "quantization": job.quantization,
        "ld_alpha": trainer.ld_alpha,
        "libraries": library_versions(),
        "device": str(trainer.args.device.type),
    }


def new_start(job: Job[Any]) -> dict[str, Any] | None:
    """What a new adapter makes of the base; None where it changes nothing at its start."""
    plain = job.tuning.initialization in ("default", "eva", "gaussian")
    if plain or job.tuning.mode == "full":
        return None
    return {"seed": job.spec.seed, "tuning": job.tuning.model_dump(mode="json")}


def _ids(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


def _dataset(rows: list[dict[str, Any]], cache: ReferenceCache) -> Dataset:
    complete = []
    for row in rows:
        chosen, rejected = cache.of(row)
        complete.append({**_ids(row), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
    return Dataset.from_list(complete)


@torch.no_grad()
def _margins(trainer: Trainer, rows: list[dict[str, Any]], cache: ReferenceCache) -> list[float]:
    """Implicit reward of the chosen minus that of the rejected response."""
    model: Any = trainer.model
    model.eval()
    margins = [0.0] * len(rows)
    for chunk in by_length(
        [longest(row) for row in rows], 2 * trainer.args.per_device_train_batch_size
    ):
        batch = trainer._prepare_inputs(trainer.data_collator([_ids(rows[at]) for at in chunk]))
        mask = batch.pop("completion_mask")
        labels = batch["input_ids"].masked_fill(mask == 0, -100)
        with trainer.accelerator.autocast():
            scored = model(**batch, use_cache=False, labels=labels, fused_lm_head=True)
        chosen, rejected = scored.log_probs.sum(dim=1).float().chunk(2)
        for at, policy in zip(chunk, (chosen - rejected).tolist(), strict=True):
            reference_chosen, reference_rejected = cache.of(rows[at])
            margins[at] = trainer.beta * (policy - (reference_chosen - reference_rejected))
    return margins
