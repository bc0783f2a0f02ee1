"""Training, from the newest certified checkpoint to the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback

from alignflow.errors import OutOfMemory, Preempted, StageError, is_out_of_memory
from alignflow.models import quiet
from alignflow.training.engine.callbacks import Certify, Report, StopOnTerminate, check_weights
from alignflow.training.engine.checkpoints import newest_whole, step_of
from alignflow.training.engine.job import Job
from alignflow.training.engine.optimizers import set_optimizer
from alignflow.training.engine.trainer import QuietTrainer


def train_to_end(trainer: QuietTrainer, job: Job[Any]) -> dict[str, float]:
    """Trains; returns the last logged figures, of the attempts before this one too.

    Raises:
        NumericsError: A loss, gradient or weight is not finite.
        OutOfMemory: The micro-batch does not fit.
        Preempted: SIGTERM came; a checkpoint was saved.
    """
    report, stop = Report(job.events), StopOnTerminate()
    trainer.remove_callback(PrinterCallback)
    for callback in (report, Certify(), stop):
        trainer.add_callback(callback)
    set_optimizer(trainer, job.section, job.tuning.lora_plus_ratio, job.spec.seed)
    checkpoint = newest_whole(job.checkpoints)
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
    model: Any = trainer.model
    check_weights(model, trainer.state.global_step)
    entries = [*trainer.state.log_history, report.last]
    figures = [figure for entry in entries for figure in entry.items()]
    return {name: value for name, value in figures if isinstance(value, int | float)}


@contextmanager
def memory_errors(trainer: QuietTrainer) -> Iterator[None]:
    """Turns every way of running out of memory into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text, size = str(error), trainer.args.per_device_train_batch_size
        raise OutOfMemory(
            f"A micro-batch of {size} rows does not fit the memory at step "
            f"{trainer.state.global_step + 1}: {text.splitlines()[0] if text else 'no memory'}"
        ) from error
