"""`report.html`: one file that needs nothing else, with its curves drawn as SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow.data import PARAPHRASE
from alignflow.errors import ArtifactError
from alignflow.evaluation import Answer, is_rate, leading_figures, lower_is_better, read_answers
from alignflow.pipeline.answers import SideBySide, retrain_flips, samples_side_by_side
from alignflow.pipeline.decision import decision, next_steps, sentence
from alignflow.pipeline.expense import in_words
from alignflow.pipeline.page import page_of
from alignflow.pipeline.plot import line_plot
from alignflow.recipe import Recipe
from alignflow.stages import EVENTS_FILE, Artifact, metric_history, read_events, read_manifest

PAGE, CELL = "report.html.j2", "report_cell.html.j2"
CHAMPION = "champion"
MODELS = ("base", "sft", "aligned", "merged", CHAMPION)
CURVES_LEADING = ("loss", "eval_loss", "accuracy", "rewards/accuracies", "rewards/margins")
LOSSES, UNTRAINED = ("loss", "eval_loss"), ("prepare", "evaluate", "merge")
UNDRAWN = ("num_tokens", "learning_rate")
CURVES_PER_STAGE = 6


def render_page(
    report: Mapping[str, Any], recipe: Recipe | None = None, *, with_answers: bool = True
) -> str:
    """The page of a report. Artifacts that are gone are left out.

    Without answers it holds no text of a row, for a store that `prefs erase` does not reach.
    """
    artifacts = artifacts_of(report)
    return _rendered(
        PAGE,
        report,
        others=metric_rows(report, leading=False),
        curves={stage: curves(artifact) for stage, artifact in artifacts.items()},
        flips=retrain_flips(report) if with_answers else [],
        samples=_samples(report, artifacts) if with_answers else [],
        lineage=_lineage(artifacts),
        settings=_settings(artifacts, recipe),
        certificate=_detail(artifacts, "merge", "certificate"),
    )


def render_cell(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """A report as a notebook shows it: its stages with a figure each, and the leading metrics."""
    return _rendered(CELL, report, figures=figures)


def _rendered(template: str, report: Mapping[str, Any], **values: Any) -> str:
    return page_of(
        template,
        report=report,
        headline=sentence(report.get("retrain")) or _headline(report),
        verdict=sentence(report.get("retrain")),
        decided=decision(report.get("retrain")),
        steps=list(next_steps(report)),
        facts=in_words(report),
        models=_models_in(report),
        roles=_roles(report),
        leading=metric_rows(report, leading=True),
        **values,
    )


def _headline(report: Mapping[str, Any]) -> str:
    """How a run ended that has no verdict, and by what leading figure."""
    evaluation = report["evaluation"]
    judged = [evaluation[model] for model in MODELS if model in evaluation]
    name = next((n for n in leading_figures() if judged and n in judged[0] and n in judged[-1]), "")
    ended = report["status"].capitalize()
    if not name:
        return f"{ended}."
    before, after = (cell_of(name, ends[name], None)["text"] for ends in (judged[0], judged[-1]))
    return (
        f"{ended}: {name} {before} → {after}." if len(judged) > 1 else f"{ended}: {name} {after}."
    )


def _models_in(report: Mapping[str, Any]) -> list[str]:
    """Models in the order of their columns: of a retrain the two that were compared first."""
    contest = ("aligned", CHAMPION) if CHAMPION in report["evaluation"] else ()
    return [m for m in dict.fromkeys((*contest, *MODELS)) if m in report["evaluation"]]


def _roles(report: Mapping[str, Any]) -> dict[str, str]:
    """What models are in a retrain, to stand under their names."""
    retrain = report.get("retrain") or {}
    if retrain.get(CHAMPION) is None:
        return {}
    return {"aligned": "candidate", CHAMPION: f"generation {retrain[CHAMPION]}"}


def artifacts_of(report: Mapping[str, Any]) -> dict[str, Artifact]:
    """Stage to its artifact, of those that are still there."""
    artifacts = {}
    for stage in report["stages"]:
        if stage["artifact"]:
            try:
                artifacts[stage["stage"]] = read_manifest(Path(stage["artifact"]))
            except (ArtifactError, OSError):
                continue
    return artifacts


def _detail(artifacts: Mapping[str, Artifact], stage: str, name: str) -> Any:
    artifact = artifacts.get(stage)
    return artifact.result.details.get(name) if artifact else None


def metric_rows(
    report: Mapping[str, Any], *, leading: bool, models: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The table of figures: a row per metric, a cell per model, each with its interval.

    Args:
        report: Of a run.
        leading: Whether the figures that are shown first are wanted, or the others.
        models: In this order; None is every one.
    """
    evaluation, intervals = report["evaluation"], report["evaluation_intervals"]
    models = _models_in(report) if models is None else models
    names = dict.fromkeys(name for model in models for name in evaluation[model])
    first = leading_figures(PARAPHRASE)
    chosen = [n for n in first if n in names] if leading else [n for n in names if n not in first]
    return [
        {
            "name": name,
            "lower_is_better": lower_is_better(name),
            "cells": [
                cell_of(name, evaluation[model].get(name), intervals.get(model, {}).get(name))
                for model in models
            ],
        }
        for name in chosen
    ]


def cell_of(name: str, value: float | None, interval: list[float] | None) -> dict[str, Any]:
    """A figure as tables show it, with its interval and the length of its bar."""
    if value is None:
        return {"text": "-", "interval": "", "bar": None}
    rate = is_rate(name, value)
    low_high = ""
    if interval:
        low, high = interval
        low_high = f"{100 * low:.1f} to {100 * high:.1f}" if rate else f"{low:.3g} to {high:.3g}"
    return {
        "text": f"{100 * value:.1f} %" if rate else f"{value:.3g}",
        "interval": low_high,
        "bar": round(100 * min(max(value, 0.0), 1.0), 1) if rate else None,
    }


def cell_text(cell: Mapping[str, Any]) -> str:
    """A cell in one line."""
    return f"{cell['text']} ({cell['interval']})" if cell["interval"] else cell["text"]


def curves(artifact: Artifact) -> list[dict[str, str]]:
    """Curves of a stage's metrics over its steps."""
    history = history_of(artifact)
    drawn = {n: points for n, points in history.items() if len(points) > 2 and n not in UNDRAWN}
    order = [n for n in CURVES_LEADING if n in drawn] + sorted(set(drawn) - set(CURVES_LEADING))
    return [{"name": name, "svg": line_plot(drawn[name])} for name in order[:CURVES_PER_STAGE]]


def loss_curves(report: Mapping[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Stage to the losses that it has over its steps, of stages that trained and are still there."""
    histories = {stage: history_of(artifact) for stage, artifact in artifacts_of(report).items()}
    return {
        stage: losses
        for stage, history in histories.items()
        if (losses := {name: history[name] for name in LOSSES if name in history})
    }


def history_of(artifact: Artifact) -> dict[str, dict[int, float]]:
    """Metric to step to value; empty where a stage trains nothing."""
    untrained = artifact.stage in UNTRAINED
    return {} if untrained else metric_history(read_events(artifact.directory / EVENTS_FILE))


def _samples(report: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> list[SideBySide]:
    """Sample answers of the evaluation, and the champion's to the same prompts."""
    stages = ("evaluate", "merge")
    samples = next((shown for name in stages if (shown := _detail(artifacts, name, "samples"))), [])
    champions = (report.get("retrain") or {}).get("champion_evaluation")
    theirs = read_answers(Path(champions), None) if champions else {}
    said = {answer.question: answer for answer in theirs.values()}
    told = [_with_champion(sample, said.get(sample["question"])) for sample in samples]
    before_candidate = [model for model in MODELS if model not in ("aligned", CHAMPION)]
    return samples_side_by_side(told, [*before_candidate, CHAMPION, "aligned"])


def _with_champion(sample: Mapping[str, Any], said: Answer | None) -> dict[str, Any]:
    if said is None:
        return dict(sample)
    scores = {**sample.get("scores", {}), **({} if said.score is None else {CHAMPION: said.score})}
    return {**sample, CHAMPION: said.text, "scores": scores}


def _lineage(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Each stage with the stages it read, by key."""
    return [
        {
            "stage": stage,
            "key": artifact.key,
            "inputs": {
                role: f"{ref.stage} {ref.key[:12]}" for role, ref in artifact.spec.inputs.items()
            },
            "libraries": artifact.libraries,
        }
        for stage, artifact in artifacts.items()
    ]


def _settings(
    artifacts: Mapping[str, Artifact], recipe: Recipe | None
) -> dict[str, dict[str, str]]:
    """Settings in force: resolved by the stages, and the recipe's where it is at hand."""
    groups: dict[str, dict[str, Any]] = {}
    if recipe is not None:
        dump = recipe.model_dump(mode="json")
        groups["recipe"] = {
            name: dump[name] for name in ("name", "seed", "base_model", "method", "tuning")
        }
    for stage, artifact in artifacts.items():
        chosen = {**artifact.spec.section, **artifact.result.params}
        if chosen:
            groups[stage] = chosen
    return {
        group: {name: _plain(value) for name, value in values.items() if value is not None}
        for group, values in groups.items()
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
