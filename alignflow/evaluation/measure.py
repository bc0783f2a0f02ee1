"""All figures of one model: responses, metrics by group, and forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from alignflow.data.groups import HOLDOUT, main_places
from alignflow.errors import EvaluationError
from alignflow.evaluation.bootstrap import interval
from alignflow.evaluation.metric_modules import MetricModule, judge, load_metrics, load_module
from alignflow.models.generate import Response, decode, respond
from alignflow.models.scoring import text_losses
from alignflow.recipe import EvaluationSection
from alignflow.stages.spec import Record


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


class Answer(Record):
    """One response."""

    ids: list[int]
    text: str


class Measured(Record):
    """One model, judged."""

    metrics: dict[str, float]
    outcomes: dict[str, Outcome]
    greedy: list[Answer] = Field(default_factory=list)
    sampled: list[Answer] = Field(default_factory=list)
    verdicts: dict[str, list[float]] = Field(default_factory=dict)
    """First metric and its further figures of every prompt: `greedy`, `sampled`, ..."""


def load_job(prepared: Path, section: EvaluationSection, seed: int) -> Job:
    """Prompts and general texts of a prepare artifact, and the metrics.

    Raises:
        EvaluationError: There is nothing to judge on, or a metric does not load.
    """
    prompts = _limited(_read_prompts(prepared / "evaluation" / "prompts.parquet"), section)
    general = _read(prepared / "general" / "rows.parquet")
    if not prompts and not general:
        raise EvaluationError(
            "There are no evaluation prompts and no general text. Name a source in "
            "data.evaluation or data.general."
        )
    metrics = load_metrics(section) if prompts else []
    return Job(prompts, [row["text"] for row in general], section, metrics, seed)


def _read(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist() if path.is_file() else []


def _read_prompts(path: Path) -> list[Prompt]:
    return [
        Prompt(
            row["prompt_ids"],
            row["question"],
            row["target"],
            row["group"],
            row.get("conversation") or row["question"],
        )
        for row in _read(path)
    ]


def _limited(prompts: list[Prompt], section: EvaluationSection) -> list[Prompt]:
    """The first `max_examples` of each group."""
    seen: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        seen[prompt.group] = seen.get(prompt.group, 0) + 1
        if section.max_examples is None or seen[prompt.group] <= section.max_examples:
            kept.append(prompt)
    return kept


def measure(
    model: Any, tokenizer: Any, job: Job, progress: Callable[[int], None] | None = None
) -> Measured:
    """Generates, judges, and reads general text.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        job: What it is judged on.
        progress: Called with the number of responses so far; `responses(job)` in all.

    Raises:
        EvaluationError: A figure cannot be computed; none is ever made up.
    """
    outcomes: dict[str, Outcome] = {}
    metrics: dict[str, float] = {}
    verdicts: dict[str, list[float]] = {}
    answers: dict[str, list[Answer]] = {}
    for mode, temperature in modes(job.section) if job.prompts else []:
        before = len(job.prompts) * len(answers)
        responses = respond(
            model,
            tokenizer,
            [prompt.ids for prompt in job.prompts],
            max_new_tokens=job.section.max_new_tokens,
            batch_size=job.section.batch_size,
            temperature=temperature,
            seed=job.seed,
            progress=_shifted(progress, before),
        )
        texts = decode(tokenizer, responses)
        answers[mode] = [
            Answer(ids=response.ids, text=text)
            for response, text in zip(responses, texts, strict=True)
        ]
        _judge_mode(job, mode, responses, texts, metrics, outcomes, verdicts)
    if job.general:
        metrics["perplexity_general"], outcomes["perplexity_general"] = _perplexity(
            model, tokenizer, job
        )
    return Measured(metrics=metrics, outcomes=outcomes, verdicts=verdicts, **answers)


def modes(section: EvaluationSection) -> list[tuple[str, float | None]]:
    """Kinds of responses and their temperatures."""
    sampled = [("sampled", section.temperature)] if section.sampled else []
    return [("greedy", None), *sampled]


def responses(job: Job) -> int:
    """Responses that one model gives."""
    return len(job.prompts) * len(modes(job.section))


def _shifted(progress: Callable[[int], None] | None, by: int) -> Callable[[int], None] | None:
    return (lambda done: progress(by + done)) if progress else None


def _judge_mode(
    job: Job,
    mode: str,
    responses: list[Response],
    texts: list[str],
    metrics: dict[str, float],
    outcomes: dict[str, Outcome],
    verdicts: dict[str, list[float]],
) -> None:
    """Adds the figures of greedy or sampled responses."""
    groups = [prompt.group for prompt in job.prompts]
    main = main_places(groups)
    clusters = prompt_clusters(job.prompts)
    prefix = "" if mode == "greedy" else "sampled_"
    last = mode == modes(job.section)[-1][0]

    def add(name: str, figure: float, places: list[int], values: list[float] | None) -> None:
        metrics[name] = figure
        if values is not None:
            outcomes[name] = Outcome(values=values, clusters=[clusters[p] for p in places])

    for number, metric in enumerate(job.metrics):
        for group, places in _judged(groups, main):
            found = judge(
                metric,
                [texts[place] for place in places],
                [job.prompts[place].target for place in places],
            )
            own = found.per_prompt.get(metric.name)
            stem = f"{group}_" if group else ""
            add(f"{prefix}{stem}{metric.name}", found.figure, places, own)
            if number == 0:
                add(f"{prefix}{stem}accuracy", found.figure, places, own)
                _spread(verdicts, f"{mode}_correct", places, own, len(texts))
            for name, values in found.per_prompt.items():
                if name != metric.name and number == 0:
                    _spread(verdicts, f"{mode}_{name}", places, values, len(texts))
                if name != metric.name and last and not group:
                    add(name, sum(values) / len(values), places, values)
    lengths = [float(responses[place].length) for place in main]
    add(f"{prefix}response_length", sum(lengths) / len(lengths), main, lengths)


def _groups(groups: list[str], main: list[int]) -> list[tuple[str, list[int]]]:
    """The main prompts under no name, then every other group under its own."""
    inside = {groups[place] for place in main}
    others = [name for name in dict.fromkeys(groups) if name not in inside]
    return [
        ("", main),
        *((name, [p for p, group in enumerate(groups) if group == name]) for name in others),
    ]


def _judged(groups: list[str], main: list[int]) -> list[tuple[str, list[int]]]:
    """Groups that metrics are about: all but the hold-out, whose answers a judge compares."""
    return [
        (name, places) for name, places in _groups(groups, main) if groups[places[0]] != HOLDOUT
    ]


def prompt_clusters(prompts: list[Prompt]) -> list[int]:
    """Places of prompts where equal prompts have equal places."""
    place_of: dict[tuple[int, ...], int] = {}
    return [place_of.setdefault(tuple(prompt.ids), len(place_of)) for prompt in prompts]


def _spread(
    verdicts: dict[str, list[float]],
    name: str,
    places: list[int],
    values: list[float] | None,
    count: int,
) -> None:
    """Puts values of some prompts where they belong among all."""
    if values is None:
        return
    row = verdicts.setdefault(name, [math.nan] * count)
    for place, value in zip(places, values, strict=True):
        row[place] = value


def _perplexity(model: Any, tokenizer: Any, job: Job) -> tuple[float, Outcome]:
    """Perplexity: exp of the loss of a token of general text. Higher than the base model's is forgetting."""
    limit = getattr(model.config, "max_position_embeddings", None)
    rows = [tokenizer(text).input_ids[:limit] for text in job.general]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise EvaluationError("data.general holds no text of at least two tokens.")
    losses = text_losses(model, rows, batch_size=min(job.section.batch_size, 16))
    tokens = [float(len(row) - 1) for row in rows]
    metric = MetricModule("perplexity", load_module("perplexity"), {})
    figure = judge(metric, losses, tokens).figure
    return figure, Outcome(
        values=losses, weights=tokens, clusters=list(range(len(rows))), exponential=True
    )


def intervals(outcomes: dict[str, Outcome], *, resamples: int, seed: int) -> dict[str, list[float]]:
    """95 % intervals of every figure that has values by prompt."""
    return {
        name: list(
            interval(
                outcome.values,
                clusters=outcome.clusters,
                weights=outcome.weights,
                resamples=resamples,
                seed=seed,
                transform=np.exp if outcome.exponential else None,
            )
        )
        for name, outcome in outcomes.items()
    }
