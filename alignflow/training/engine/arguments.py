"""Arguments of the trainers, from a section of the recipe."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from alignflow.errors import RecipeError
from alignflow.models import device, quiet
from alignflow.recipe import TRAINING_STAGES, ComputeSection
from alignflow.stages import first_micro_batch, largest_divisor
from alignflow.training.engine.job import Job
from alignflow.training.engine.optimizers import transformers_name
from alignflow.training.engine.reserved import RESERVED

PASSED = (
    *("learning_rate", "num_train_epochs", "lr_scheduler_type", "weight_decay", "max_grad_norm"),
    *("logging_steps", "save_steps"),
)
"""Fields of a section that are arguments of the same name for every trainer."""


def micro_batch_size(compute: ComputeSection, batch_size: int, least: int = 1) -> int:
    """Rows per forward pass: the largest divisor of the effective batch within what is allowed."""
    return largest_divisor(batch_size, first_micro_batch(compute, batch_size), least)


def gradient_checkpointing(compute: ComputeSection) -> bool:
    """`auto`: on for a GPU, off for a CPU, where memory is not what is short."""
    asked = compute.gradient_checkpointing
    return device().type != "cpu" if asked == "auto" else bool(asked)


def training_arguments(kind: Any, job: Job[Any], rows: int, **own: Any) -> Any:
    """Arguments, of TRL's class `kind`, of a stage whose passes go over so many rows.

    Raises:
        RecipeError: `trainer_args` names one that does not exist or that the recipe sets.
    """
    section, compute, where = job.section, job.spec.compute, f"{job.spec.stage}.trainer_args"
    known = {field.name for field in dataclasses.fields(kind)}
    for name in section.trainer_args:
        if name in RESERVED:
            raise RecipeError(f"{where}: {name} is set by {RESERVED[name]}; leave it out.")
        if name not in known:
            raise RecipeError(f"{where}: {kind.__name__} has no argument {name!r}. Check its name.")
    least = TRAINING_STAGES[job.spec.stage].least_micro_batch
    micro = micro_batch_size(compute, section.batch_size, least)
    steps = section.max_steps or math.ceil(
        section.num_train_epochs * math.ceil(rows / section.batch_size)
    )
    where_known = {"max_length": None, "disable_dropout": job.tuning.dropout == 0}
    values: dict[str, Any] = {
        **{name: getattr(section, name) for name in PASSED},
        "output_dir": str(job.checkpoints),
        "max_steps": section.max_steps or -1,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": section.batch_size // micro,
        "warmup_steps": math.ceil(section.warmup_ratio * steps),
        **transformers_name(section),
        "save_strategy": "steps",
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
