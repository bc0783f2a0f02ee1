"""The one order of every stage that trains with a trainer, and what a method differs by.

    rows -> model -> trainer -> initialization -> the method's preparation -> a champion's weights
         -> training -> measurement of what is held out -> the saved model

A method is a class that says what it does at these points, in a file of its own under `methods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from alignflow.data import View
from alignflow.models import quiet
from alignflow.stages import EventWriter, RowAccount, StageResult, StageSpec
from alignflow.training.engine.arguments import training_arguments
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.job import AnySection, Job, read_job
from alignflow.training.engine.loop import train_to_end
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.starting import (
    continue_from_champion,
    drop_reference,
    starting_policy,
)


class Measured(NamedTuple):
    """What a method says of the model that it trained."""

    metrics: Mapping[str, float | None]
    details: Mapping[str, Any]


class Method(Generic[AnySection]):
    """A method's difference from what all share. `fit` asks for its parts in the order they stand."""

    section: ClassVar[Any]
    """Its section of the recipe."""
    configuration: ClassVar[Any] = TrainingArguments
    """The class of its trainer's arguments."""
    trainer: ClassVar[Any]
    """Mixed with `QuietTrainer`, or `ThinTrainer` for our order of rows."""
    passed: ClassVar[tuple[str, ...]] = ()
    """Fields of the section that are trainer arguments of the same name."""
    logged: ClassVar[Mapping[str, str]] = {"loss": "loss"}
    """Metrics that are the last of what the trainer logged: ours to its names."""

    def __init__(self, job: Job[AnySection]) -> None:
        self.job = job

    @classmethod
    def run(cls, spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
        return fit(cls(read_job(spec, work, events, cls.section)))

    @cached_property
    def rows(self) -> Sequence[Any]:
        """What is trained on. It may ask for the model, to sample from it."""
        raise NotImplementedError

    @cached_property
    def model(self) -> Any:
        """What trains."""
        return starting_policy(self.job)

    def arguments(self) -> dict[str, Any]:
        """Of the configuration, beside those that every method has."""
        return {}

    def examples(self) -> int:
        """What one pass over the rows trains on."""
        return len(self.rows)

    def features(self, row: Any) -> dict[str, Any]:
        """What of a row the trainer's collator reads."""
        return row

    def length(self, row: Any) -> int:
        """Tokens of a row."""
        return len(row["input_ids"])

    def options(self) -> dict[str, Any]:
        """Of the trainer's constructor, beside model, arguments, rows and tokenizer."""
        return {}

    def prepare(self, trainer: Any) -> dict[str, Any]:
        """Does what comes before training; returns parameters for MLflow."""
        return {}

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        """Of the trained model, and of the last figures that were logged."""
        return Measured({}, {})

    def score(self, trainer: Any, batch: dict[str, Tensor]) -> Tensor:
        """A figure of each row of a held-out batch; for `scores`."""
        raise NotImplementedError

    def save(self) -> None:
        save(self.model, self.job)

    def account(self) -> RowAccount:
        """Where the rows went."""
        raise NotImplementedError


def fit(method: Method[Any]) -> StageResult:
    """Trains a method's model on its rows, measures and saves it."""
    job = method.job
    trainer = _trainer(method)
    make_ready(trainer, job)
    micro_batch = trainer.args.per_device_train_batch_size
    params = parameters(method.model, job, micro_batch, job.section.batch_size // micro_batch)
    params |= method.prepare(trainer)
    continue_from_champion(method.model, job)
    last = train_to_end(trainer, job)
    measured = method.measure(trainer, last)
    drop_reference(method.model)
    method.save()
    return StageResult(
        metrics=dict(measured.metrics)
        | {metric: last.get(name) for metric, name in method.logged.items()},
        rows=method.account(),
        params=params,
        details={**measured.details, "steps": trainer.state.global_step},
    )


def _trainer(method: Method[Any]) -> Any:
    rows, model = method.rows, method.model
    own = {name: getattr(method.job.section, name) for name in method.passed} | method.arguments()
    arguments = training_arguments(method.configuration, method.job, method.examples(), **own)
    with quiet(), _exact_start(model, method.job):
        trainer = method.trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([method.features(rows[0])]),
            processing_class=method.job.tokenizer,
            **method.options(),
        )
    # TRL looks at a row and demands a data set of its own kind, which would hold them all
    trainer.train_dataset = View(len(rows), lambda at: method.features(rows[at]))
    trainer.lengths = [method.length(row) for row in rows]
    trainer.effective_batch_size = method.job.section.batch_size
    return trainer


@contextmanager
def _exact_start(model: Any, job: Job[Any]) -> Iterator[None]:
    """Puts the weights that train back once a trainer is made of an NF4 model.

    TRL rounds them to bfloat16 there, after it has copied the reference from them: policy and
    reference would not start as one.
    """
    kept = {
        name: parameter.detach().clone()
        for name, parameter in (model.named_parameters() if job.quantization else ())
        if parameter.requires_grad
    }
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


def batches(
    method: Method[Any], trainer: Any, rows: Sequence[Any]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows in batches of like length, shortest first, so that they pad little; positions with each."""
    order = sorted(range(len(rows)), key=lambda at: method.length(rows[at]))
    size = 2 * trainer.args.per_device_train_batch_size
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        features = [method.features(rows[at]) for at in chunk]
        yield chunk, trainer._prepare_inputs(trainer.data_collator(features))


@torch.no_grad()
def scores(method: Method[Any], trainer: Any, rows: Sequence[Any]) -> list[float]:
    """The method's figure of each row, in the order of the rows, by the model as it is."""
    trainer.model.eval()
    figures = [0.0] * len(rows)
    for chunk, batch in batches(method, trainer, rows):
        with trainer.accelerator.autocast():
            values = method.score(trainer, batch)
        for at, value in zip(chunk, values.tolist(), strict=True):
            figures[at] = value
    return figures
