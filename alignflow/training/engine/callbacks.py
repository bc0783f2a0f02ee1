"""What a Trainer tells us while it trains: progress, metrics, checkpoints, and when to stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from alignflow.errors import NumericsError
from alignflow.stages import EventWriter
from alignflow.training.engine.checkpoints import certify, rotate

LEFT_OUT = ("epoch", "total_flos")


class Report(TrainerCallback):
    """Writes progress at every step and metrics at every log."""

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self.last: dict[str, float] = {}

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._events.progress(state.global_step, state.max_steps)

    on_train_begin = on_step_end

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        values = {
            name: float(value)
            for name, value in given["logs"].items()
            if isinstance(value, int | float)
            and name not in LEFT_OUT
            and not name.startswith("train_")
        }
        if not values:
            return
        self._events.metrics(state.global_step, values)
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))]
        if bad:
            raise not_finite(bad[0], state.global_step)
        self.last = {**self.last, **values}


class Certify(TrainerCallback):
    """Certifies each checkpoint and keeps the newest two. Weights with NaN or inf are refused."""

    def on_save(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        if not state.is_world_process_zero:
            return
        check_weights(given["model"], state.global_step)
        root = Path(str(args.output_dir))
        certify(root / f"checkpoint-{state.global_step}")
        rotate(root)


class StopOnTerminate(TrainerCallback):
    """On SIGTERM ends the step, saves a checkpoint and stops."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM over inside the block."""
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True


def not_finite(what: str, step: int) -> NumericsError:
    return NumericsError(
        f"{what} is NaN or inf at step {step}. Lower learning_rate or max_grad_norm, or look at the "
        "rows of that step. Checkpoints before it are kept."
    )


def check_weights(model: torch.nn.Module, step: int) -> None:
    """Raises NumericsError when a trained weight is not finite."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise not_finite(f"weight {name}", step)
