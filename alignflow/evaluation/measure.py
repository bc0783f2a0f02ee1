"""All figures of one model: responses, metrics by group, and forgetting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from alignflow.data import HOLDOUT, main_places, read_judged
from alignflow.errors import EvaluationError
from alignflow.evaluation.about import SAMPLED
from alignflow.evaluation.metric_modules import (
    MetricFigures,
    MetricModule,
    compute_metric,
    load_metrics,
    load_module,
)
from alignflow.evaluation.statistics import interval, wilson
from alignflow.models import Response, answers, respond, text_losses
from alignflow.recipe import EvaluationSection
from alignflow.stages import Prepared, Record


class Prompt(NamedTuple):
    """A prompt that models are judged on."""

    ids: list[int]
    question: str
    target: str
    group: str
    conversation: str
    """The whole prompt as a judge reads it."""


class Job(NamedTuple):
    """What every model of a run is judged on, and how."""

    prompts: list[Prompt]
    general: list[str]
    section: EvaluationSection
    metrics: list[MetricModule]
    seed: int


class Outcome(Record):
    """The values behind a figure: sum(values) / sum(weights), exp of it for a perplexity."""

    values: list[float]
    weights: list[float] | None = None
    clusters: list[int]
    """Places of the prompts; equal prompts have equal places."""
    exponential: bool = False


class DecodedResponse(Record):
    """One response to a prompt."""

    ids: list[int]
    text: str


class Measured(Record):
    """One model, judged."""

    metrics: dict[str, float]
    outcomes: dict[str, Outcome]
    greedy: list[DecodedResponse] = Field(default_factory=list)
    sampled: list[DecodedResponse] = Field(default_factory=list)
    verdicts: dict[str, list[float]] = Field(default_factory=dict)
    """First metric and its further figures of every prompt: `greedy`, `sampled`, ..."""


def load_job(prepared: Path, section: EvaluationSection, seed: int) -> Job:
    """Prompts and general texts of a prepare artifact, and the metrics.

    Raises:
        EvaluationError: There is nothing to judge on, or a metric does not load.
    """
    prompts = _limited(_read_prompts(Prepared(prepared).evaluation), section)
    general = load_general(prepared)
    if not prompts and not general:
        raise EvaluationError(
            "There are no evaluation prompts and no general text. Name a source in "
            "data.evaluation or data.general."
        )
    metrics = load_metrics(section) if prompts else []
    return Job(prompts, general, section, metrics, seed)


def load_general(prepared: Path) -> list[str]:
    """General texts of a prepare artifact."""
    return [row["text"] for row in read_judged(Prepared(prepared).general)]


def _read_prompts(path: Path) -> list[Prompt]:
    return [
        Prompt(
            row["prompt_ids"],
            row["question"],
            row["target"],
            row["group"],
            row.get("conversation") or row["question"],
        )
        for row in read_judged(path)
    ]


def _limited(prompts: list[Prompt], section: EvaluationSection) -> list[Prompt]:
    """The first `max_examples` of each group."""
    seen, kept = Counter[str](), []
    for prompt in prompts:
        seen[prompt.group] += 1
        if section.max_examples is None or seen[prompt.group] <= section.max_examples:
            kept.append(prompt)
    return kept


def measure(
    model: Any, tokenizer: Any, job: Job, progress: Callable[[int], None] | None = None
) -> Measured:
    """Generates, judges, and reads general text.

    `progress` is called with the number of responses so far; they are `responses(job)` in all.

    Raises:
        EvaluationError: A figure cannot be computed; none is ever made up.
    """
    parts = [
        _measured_mode(model, tokenizer, job, place, progress)
        for place in range(len(modes(job.section)) if job.prompts else 0)
    ]
    if job.general:
        parts.append(_measured_text(model, tokenizer, job))
    return united(parts)


def united(parts: Iterable[Measured]) -> Measured:
    """One model's figures and responses, of parts that have different ones."""
    parts = list(parts)
    return Measured(
        metrics={name: figure for part in parts for name, figure in part.metrics.items()},
        outcomes={name: outcome for part in parts for name, outcome in part.outcomes.items()},
        greedy=[response for part in parts for response in part.greedy],
        sampled=[response for part in parts for response in part.sampled],
        verdicts={name: values for part in parts for name, values in part.verdicts.items()},
    )


def modes(section: EvaluationSection) -> list[tuple[str, float | None]]:
    """Kinds of responses and their temperatures."""
    sampled = [("sampled", section.temperature)] if section.sampled else []
    return [("greedy", None), *sampled]


def responses(job: Job) -> int:
    """Responses that one model gives."""
    return len(job.prompts) * len(modes(job.section))


def _shifted(progress: Callable[[int], None] | None, by: int) -> Callable[[int], None] | None:
    return (lambda done: progress(by + done)) if progress else None


def _measured_mode(
    model: Any, tokenizer: Any, job: Job, place: int, progress: Callable[[int], None] | None
) -> Measured:
    """Responses of one of `modes`, and their figures."""
    mode, temperature = modes(job.section)[place]
    generated = respond(
        model,
        tokenizer,
        [prompt.ids for prompt in job.prompts],
        max_new_tokens=job.section.max_new_tokens,
        batch_size=job.section.batch_size,
        temperature=temperature,
        seed=job.seed,
        progress=_shifted(progress, len(job.prompts) * place),
    )
    texts = answers(tokenizer, [r.ids for r in generated])
    judged = _judged(job, texts)
    further = place == len(modes(job.section)) - 1
    figures = [
        *_figures(judged, "" if mode == "greedy" else SAMPLED, further=further),
        _length(job, generated, "" if mode == "greedy" else SAMPLED),
    ]
    clusters = prompt_clusters(job.prompts)
    responses = [
        DecodedResponse(ids=response.ids, text=text)
        for response, text in zip(generated, texts, strict=True)
    ]
    return Measured(
        metrics={figure.name: figure.value for figure in figures},
        outcomes={
            figure.name: Outcome(
                values=figure.values, clusters=[clusters[p] for p in figure.places]
            )
            for figure in figures
            if figure.values is not None
        },
        verdicts=_verdicts(judged, mode, len(texts)),
        **{mode: responses},
    )


class _Judged(NamedTuple):
    """What a metric says of the responses of one group."""

    metric: MetricModule
    is_first: bool
    """Of the recipe's metrics."""
    group: str
    """Empty for the main prompts."""
    places: list[int]
    figures: MetricFigures

    @property
    def own_values(self) -> list[float] | None:
        """The metric's own value of each prompt, where it has one."""
        return self.figures.per_prompt.get(self.metric.name)

    @property
    def further(self) -> dict[str, list[float]]:
        return {n: v for n, v in self.figures.per_prompt.items() if n != self.metric.name}


class _Figure(NamedTuple):
    """A figure, the prompts it is about, and its value for each."""

    name: str
    value: float
    places: list[int]
    values: list[float] | None


def _judged(job: Job, texts: list[str]) -> list[_Judged]:
    """Every metric on every group but the hold-out, whose responses a judge compares."""
    groups = [prompt.group for prompt in job.prompts]
    return [
        _Judged(
            metric,
            number == 0,
            group,
            places,
            compute_metric(
                metric,
                [texts[place] for place in places],
                [job.prompts[place].target for place in places],
            ),
        )
        for number, metric in enumerate(job.metrics)
        for group, places in _groups(groups, main_places(groups))
        if groups[places[0]] != HOLDOUT
    ]


def _figures(judged: list[_Judged], prefix: str, *, further: bool) -> Iterator[_Figure]:
    """Figures by name: of each metric and group, the first metric's under its second name too."""
    for entry in judged:
        stem = f"{prefix}{entry.group}_" if entry.group else prefix
        second = [entry.metric.leading_name] if entry.is_first else []
        for name in (entry.metric.name, *second):
            yield _Figure(f"{stem}{name}", entry.figures.figure, entry.places, entry.own_values)
        if further and not entry.group:
            for name, values in entry.further.items():
                yield _Figure(name, sum(values) / len(values), entry.places, values)


def _length(job: Job, generated: list[Response], prefix: str) -> _Figure:
    """Mean length of the responses to the main prompts, in tokens."""
    main = main_places([prompt.group for prompt in job.prompts])
    lengths = [float(generated[place].length) for place in main]
    return _Figure(f"{prefix}response_length", sum(lengths) / len(lengths), main, lengths)


def _verdicts(judged: list[_Judged], mode: str, prompts: int) -> dict[str, list[float]]:
    """The first metric's values and its further ones where their prompts are among all."""
    rows: dict[str, list[float]] = {}
    for entry in judged:
        correct = {"correct": entry.own_values} if entry.own_values is not None else {}
        for name, values in {**correct, **entry.further}.items() if entry.is_first else ():
            row = rows.setdefault(f"{mode}_{name}", [math.nan] * prompts)
            for place, value in zip(entry.places, values, strict=True):
                row[place] = value
    return rows


def _groups(groups: list[str], main: list[int]) -> list[tuple[str, list[int]]]:
    """The main prompts under no name, then every other group under its own."""
    inside = {groups[place] for place in main}
    others = [name for name in dict.fromkeys(groups) if name not in inside]
    return [
        ("", main),
        *((name, [p for p, group in enumerate(groups) if group == name]) for name in others),
    ]


def prompt_clusters(prompts: list[Prompt]) -> list[int]:
    """Places of prompts where equal prompts have equal places."""
    place_of: dict[tuple[int, ...], int] = {}
    return [place_of.setdefault(tuple(prompt.ids), len(place_of)) for prompt in prompts]


def _measured_text(model: Any, tokenizer: Any, job: Job) -> Measured:
    """Perplexity: exp of the loss of a token of general text. Higher than the base model's is forgetting."""
    limit = getattr(model.config, "max_position_embeddings", None)
    rows = [tokenizer(text).input_ids[:limit] for text in job.general]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise EvaluationError("data.general holds no text of at least two tokens.")
    losses = text_losses(model, rows, batch_size=min(job.section.batch_size, 16))
    tokens = [float(len(row) - 1) for row in rows]
    metric = MetricModule("perplexity", load_module("perplexity"), {})
    outcome = Outcome(
        values=losses, weights=tokens, clusters=list(range(len(rows))), exponential=True
    )
    return Measured(
        metrics={"perplexity_general": compute_metric(metric, losses, tokens).figure},
        outcomes={"perplexity_general": outcome},
    )


def intervals(outcomes: dict[str, Outcome], *, resamples: int, seed: int) -> dict[str, list[float]]:
    """95 % intervals of every figure that has values by prompt: Wilson's or the bootstrap's."""
    return {name: list(_interval(outcome, resamples, seed)) for name, outcome in outcomes.items()}


def _interval(outcome: Outcome, resamples: int, seed: int) -> tuple[float, float]:
    values, clusters = outcome.values, outcome.clusters
    is_count = set(values) <= {0.0, 1.0} and outcome.weights is None
    if is_count and len(set(clusters)) == len(values):  # each prompt has one answer, right or wrong
        return wilson(round(sum(values)), len(values))
    return interval(
        values,
        clusters=clusters,
        weights=outcome.weights,
        resamples=resamples,
        seed=seed,
        transform=np.exp if outcome.exponential else None,
    )
