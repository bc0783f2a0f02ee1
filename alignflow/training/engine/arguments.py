"""Arguments of the trainers, from a section of the recipe."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from alignflow.errors import RecipeError
from alignflow.models.loading import device, quiet
from alignflow.recipe import ComputeSection
from alignflow.stages.device import first_micro_batch, largest_divisor
from alignflow.training.engine.job import Job
from alignflow.training.engine.optimizers import transformers_name
from alignflow.training.engine.reserved import RESERVED


def micro_batch_size(compute: ComputeSection, batch_size: int) -> int:
    """Rows per forward pass: the largest divisor of the effective batch within what is allowed."""
    return largest_divisor(batch_size, first_micro_batch(compute, batch_size))


def gradient_checkpointing(compute: ComputeSection) -> bool:
    """`auto`: on for a GPU, off for a CPU, where memory is not what is short."""
    asked = compute.gradient_checkpointing
    return device().type != "cpu" if asked == "auto" else bool(asked)


def training_arguments(kind: Any, job: Job[Any], rows: int, **own: Any) -> Any:
    """Arguments of one of TRL's configuration classes.

    Args:
        kind: The class.
        job: Has the section.
        rows: That a pass goes over.
        **own: What the method adds.

    Raises:
        RecipeError: `trainer_args` names one that does not exist or that the recipe sets.
    """
    section, compute = job.section, job.spec.compute
    known = {field.name for field in dataclasses.fields(kind)}
    _check_trainer_args(kind.__name__, known, section.trainer_args, job.spec.stage)
    micro = micro_batch_size(compute, section.batch_size)
    steps = section.max_steps or math.ceil(
        section.num_train_epochs * math.ceil(rows / section.batch_size)
    )
    where_known = {"max_length": None, "disable_dropout": job.tuning.dropout == 0}
    values: dict[str, Any] = {
        "output_dir": str(job.checkpoints),
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
        **{name: value for name, value in where_known.items() if name in known},
        **own,
        **section.trainer_args,
    }
    with quiet():
        try:
            return kind(**values)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{job.spec.stage}: {kind.__name__} refuses: {error}") from error


def _check_trainer_args(
    kind: str, known: set[str], trainer_args: dict[str, Any], stage: str
) -> None:
    """Raises RecipeError for a name that is unknown or that the recipe sets itself."""
    for name in trainer_args:
        if name in RESERVED:
            raise RecipeError(
                f"{stage}.trainer_args: {name} is set by {RESERVED[name]}; leave it out."
            )
        if name not in known:
            raise RecipeError(
                f"{stage}.trainer_args: {kind} has no argument {name!r}. Check its name."
            )
