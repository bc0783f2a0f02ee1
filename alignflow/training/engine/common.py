"""What the three training stages share, from a spec to a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow.parquet as pq
import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from alignflow.errors import DataError, OutOfMemory, Preempted, RecipeError, StageError
from alignflow.models.loading import (
    BaseModel,
    base_of,
    device,
    load_tokenizer,
    quiet,
    quiet_libraries,
)
from alignflow.recipe import TrainingSection, TuningSection
from alignflow.stages.device import first_micro_batch, largest_divisor
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import RowAccount, StageSpec
from alignflow.training.engine.callbacks import Certify, Report, StopOnTerminate, check_weights
from alignflow.training.engine.checkpoints import newest_whole, step_of
from alignflow.training.engine.optimizers import set_optimizer, transformers_name
from alignflow.training.engine.trainer import QuietTrainer

RESERVED = {
    "output_dir": "the home",
    "per_device_train_batch_size": "batch_size or compute.micro_batch_size",
    "gradient_accumulation_steps": "batch_size or compute.micro_batch_size",
    "gradient_checkpointing": "compute.gradient_checkpointing",
    "activation_checkpointing": "compute.gradient_checkpointing",
    "seed": "the recipe's seed",
    "data_seed": "the recipe's seed",
    "bf16": "tuning.dtype",
    "fp16": "tuning.dtype",
    "use_cpu": "the machine",
    "report_to": "MLflow, always",
    "optim": "optimizer",
    "save_strategy": "save_steps",
    "save_total_limit": "two, always",
    "resume_from_checkpoint": "the newest certified checkpoint, always",
    "packing": "nothing: rows are never joined or cut",
    "num_iterations": "nothing: every update samples anew",
    "steps_per_generation": "nothing: every update samples anew",
    "generation_batch_size": "batch_size",
    "model_init_kwargs": "base_model and tuning",
}
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "defaultcpualloc")

AnySection = TypeVar("AnySection", bound=TrainingSection)


class Job(NamedTuple, Generic[AnySection]):
    """A training stage's spec, read."""

    spec: StageSpec
    work: Path
    events: EventWriter
    section: AnySection
    tuning: TuningSection
    dtype: str
    base: BaseModel
    tokenizer: Any

    @property
    def quantization(self) -> str | None:
        """Of the base's weights."""
        return "nf4" if self.tuning.mode == "qlora" else None

    @property
    def weights_dtype(self) -> str:
        """Of the base's weights: as the recipe has it where they train, else the compute type."""
        return self.tuning.weights_dtype if self.tuning.mode == "full" else self.dtype

    @property
    def sft(self) -> Path | None:
        """Directory of the SFT artifact, if there is one."""
        return self.spec.input("sft") if "sft" in self.spec.inputs else None

    @property
    def output(self) -> Path:
        """Where the artifact's files go."""
        return self.work / "output"


def read_job(
    spec: StageSpec, work: Path, events: EventWriter, section: type[AnySection]
) -> Job[AnySection]:
    """Reads a spec, makes libraries quiet, and sets the seed before any weight is drawn."""
    quiet_libraries()
    set_seed(spec.seed)
    data = spec.input("data")
    return Job(
        spec,
        work,
        events,
        section.model_validate(spec.params["section"]),
        TuningSection.model_validate(spec.params["tuning"]),
        spec.params["dtype"],
        base_of(spec),
        load_tokenizer(data),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that `prepare` wrote."""
    return pq.read_table(path).to_pylist()


def within(rows: list[dict[str, Any]], lengths: list[int], limit: int) -> list[dict[str, Any]]:
    """Rows of at most `limit` tokens.

    Raises:
        DataError: There is none.
    """
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if not kept:
        raise DataError(
            f"All {len(rows)} rows are longer than max_length {limit}. Raise max_length."
        )
    return kept


def has_demonstrations(job: Job[Any]) -> bool:
    """Whether there are demonstrations that no stage before this one trained on."""
    return job.sft is None and (job.spec.input("data") / "sft" / "train.parquet").is_file()


def demonstration_rows(job: Job[Any]) -> list[dict[str, Any]]:
    """Demonstrations in token ids that fit max_length."""
    rows = read_rows(job.spec.input("data") / "sft" / "train.parquet")
    return within(rows, [len(row["input_ids"]) for row in rows], job.section.max_length)


def prepared_rows(job: Job[Any], part: str) -> RowAccount:
    """What `prepare` says of a part's rows."""
    return RowAccount(**json.loads((job.spec.input("data") / "rows.json").read_text())[part])


def account(
    job: Job[Any], part: str | tuple[str, ...], trained: int, held_out: int = 0
) -> RowAccount:
    """The row account of a stage: that of `prepare`, and rows this stage alone finds too long."""
    names = (part,) if isinstance(part, str) else part
    prepared = RowAccount.total(prepared_rows(job, name) for name in names)
    lost = prepared.trained + prepared.held_out - trained - held_out
    return RowAccount(
        read=prepared.read,
        trained=trained,
        held_out=held_out,
        dropped=dict(Counter(prepared.dropped) + Counter({"too_long": lost})),
    )


def micro_batch_size(compute: dict[str, Any], batch_size: int) -> int:
    """Rows per forward pass: the largest divisor of the effective batch within what is allowed."""
    return largest_divisor(batch_size, first_micro_batch(compute, batch_size))


def gradient_checkpointing(compute: dict[str, Any]) -> bool:
    """`auto`: on for a GPU, off for a CPU, where memory is not what is short."""
    asked = compute.get("gradient_checkpointing", "auto")
    return device().type != "cpu" if asked == "auto" else bool(asked)


def training_arguments(kind: Any, job: Job[Any], rows: int, **own: Any) -> Any:
    """Arguments of one of TRL's configuration classes.

    Raises:
        RecipeError: `trainer_args` names one that does not exist or that the recipe sets.
    """
    section, compute = job.section, job.spec.compute
    check_trainer_args(kind, section.trainer_args, job.spec.stage)
    micro = micro_batch_size(compute, section.batch_size)
    steps = section.max_steps or math.ceil(
        section.num_train_epochs * math.ceil(rows / section.batch_size)
    )
    values: dict[str, Any] = {
        "output_dir": str(job.work / "checkpoints"),
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.num_train_epochs,
        "max_steps": section.max_steps or -1,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": section.batch_size // micro,
        "warmup_steps": math.ceil(section.warmup_ratio * steps),
        "lr_scheduler_type": section.lr_scheduler_type,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        **transformers_name(section),
        "logging_steps": section.logging_steps,
        "save_strategy": "steps",
        "save_steps": section.save_steps,
        "save_total_limit": None,
        "seed": job.spec.seed,
        "data_seed": job.spec.seed,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": device().type == "cpu",
        "gradient_checkpointing": gradient_checkpointing(compute),
        "dataloader_pin_memory": device().type != "cpu",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "eval_strategy": "no",
        **({"max_length": None} if "max_length" in known_names(kind) else {}),
        **own,
        **section.trainer_args,
    }
    with quiet():
        try:
            return kind(**values)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{job.spec.stage}: {kind.__name__} refuses: {error}") from error


def known_names(kind: Any) -> set[str]:
    """Arguments of a configuration class."""
    return {field.name for field in dataclasses.fields(kind)}


def check_trainer_args(kind: Any, trainer_args: dict[str, Any], stage: str) -> None:
    """Raises RecipeError for a name that is unknown or that the recipe sets itself."""
    known = known_names(kind)
    for name in trainer_args:
        if name in RESERVED:
            raise RecipeError(
                f"{stage}.trainer_args: {name} is set by {RESERVED[name]}; leave it out."
            )
        if name not in known:
            raise RecipeError(
                f"{stage}.trainer_args: {kind.__name__} has no argument {name!r}. Check its name."
            )


def train(trainer: QuietTrainer, job: Job[Any]) -> dict[str, float]:
    """Trains from the newest certified checkpoint to the end; returns the last logged metrics.

    Raises:
        NumericsError: A loss, gradient or weight is not finite.
        OutOfMemory: The micro-batch does not fit.
        Preempted: SIGTERM came; a checkpoint was saved.
    """
    report, stop = Report(job.events), StopOnTerminate()
    callbacks: list[TrainerCallback] = [report, Certify(), stop]
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    set_optimizer(trainer, job.section, job.tuning.lora_plus_ratio, job.spec.seed)
    checkpoint = newest_whole(job.work / "checkpoints")
    if checkpoint:
        job.events.message(f"Continues from step {step_of(checkpoint)}.")
    with stop.listening(), quiet(), memory_errors(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked:
        raise Preempted(
            f"Stopped by SIGTERM at step {trainer.state.global_step} of {trainer.state.max_steps}; "
            "a checkpoint was saved and the next attempt continues from it."
        )
    if trainer.state.global_step == 0:
        raise StageError("Training made no step.")
    check_weights(_module(trainer), trainer.state.global_step)
    return {**_history(trainer), **report.last}


def _module(trainer: QuietTrainer) -> torch.nn.Module:
    assert trainer.model is not None
    return trainer.model


def _history(trainer: QuietTrainer) -> dict[str, float]:
    """Last logged figures of the attempts before this one."""
    found: dict[str, float] = {}
    for entry in trainer.state.log_history:
        found |= {name: value for name, value in entry.items() if isinstance(value, int | float)}
    return found


@contextlib.contextmanager
def memory_errors(trainer: QuietTrainer) -> Iterator[None]:
    """Turns every way of running out of memory into OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(sign in text.lower() for sign in OUT_OF_MEMORY):
            raise
        size = trainer.args.per_device_train_batch_size
        raise OutOfMemory(
            f"A micro-batch of {size} rows does not fit the memory at step "
            f"{trainer.state.global_step + 1}: {text.splitlines()[0] if text else 'no memory'}"
        ) from error
