"""What the retrain section shows to be wrong: else it would be said at the gate, after all training."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from alignflow.checking.findings import Finding, error, raised
from alignflow.errors import AlignflowError
from alignflow.recipe import JudgeSection, Recipe, is_hub_id, resolve_base_model, resolve_function


def retrain_findings(recipe: Recipe, known: Collection[str]) -> Iterator[Finding]:
    """Judge and metric of the gate.

    `known` are metrics of ours, whose figures have their names; the user's own may give others.
    """
    if recipe.retrain is None:
        return
    if recipe.retrain.judge is not None:
        yield from _judge_findings(recipe.retrain.judge)
    metric, metrics = recipe.retrain.gate.metric, [use.name for use in recipe.evaluation.uses]
    if metric is None or not set(metrics) <= set(known):
        return
    if metric.removeprefix("sampled_") not in metrics:
        there = ", ".join(f"{name}, sampled_{name}" for name in metrics) or "none"
        yield error(
            "retrain.gate.metric",
            f"is {metric!r}; figures by prompt of evaluation.metrics are: {there}.",
        )


def _judge_findings(judge: JudgeSection) -> Iterator[Finding]:
    try:
        if judge.function is not None:
            resolve_function(judge.function, "retrain.judge.function")
        if judge.model is not None and not is_hub_id(judge.model.source):
            resolve_base_model(judge.model, "retrain.judge.model")
    except AlignflowError as problem:
        yield raised(problem)
