"""Stage `sft`: supervised fine-tuning on demonstrations; the loss is on responses only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignflow.models.adapters import new_adapter
from alignflow.models.loading import load_adapter, load_base, quiet
from alignflow.recipe import SFTSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import StageResult, StageSpec
from alignflow.training.engine.common import (
    Job,
    account,
    demonstration_rows,
    read_job,
    train,
    training_arguments,
)
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.trainer import ThinTrainer


class Trainer(ThinTrainer, SFTTrainer):
    """TRL's, on rows that are token ids already."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, SFTSection)
    rows = _rows(job)
    model = _policy(job)
    arguments = training_arguments(
        SFTConfig, job, len(rows), dataset_kwargs={"skip_prepare_dataset": True}
    )
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=job.tokenizer,
        )
    trainer.lengths = [len(row["input_ids"]) for row in rows]
    trainer.effective_batch_size = job.section.batch_size
    make_ready(trainer, job)
    params = parameters(model, job, arguments)
    last = train(trainer, job)
    save(model, job)
    return StageResult(
        metrics={"loss": last.get("loss"), "token_accuracy": last.get("mean_token_accuracy")},
        rows=account(job, "sft", len(rows)),
        params=params,
        details={"steps": trainer.state.global_step, "tokens": last.get("num_tokens")},
    )


def _rows(job: Job[SFTSection]) -> list[dict[str, Any]]:
    """Token ids, with labels of -100 where there is no loss."""
    return [
        {
            "input_ids": row["input_ids"],
            "labels": [
                token if counted else -100
                for token, counted in zip(row["input_ids"], row["completion_mask"], strict=True)
            ],
        }
        for row in demonstration_rows(job)
    ]


def _policy(job: Job[SFTSection]) -> Any:
    model = load_base(job.base, dtype=job.weights_dtype, quantization=job.quantization)
    if job.tuning.mode == "full":
        return model
    if job.tuning.init_adapter:
        directory = Path(job.tuning.init_adapter)
        return load_adapter(model, directory, job.base, trainable=True)
    return new_adapter(model, job.tuning, "CAUSAL_LM")
