"""Metrics as modules of the `evaluate` library: ours by name, the user's own by path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.errors import EvaluationError
from alignflow.files import sha256_file
from alignflow.recipe import EvaluationSection

OURS = Path(__file__).parent / "metrics"
TEXT_METRICS = ("exact_match", "execution_accuracy", "json_validity", "overlap")
"""Those of ours that compare responses with targets. The others take numbers and need no naming."""


class MetricModule(NamedTuple):
    """A metric, loaded."""

    name: str
    module: Any
    arguments: dict[str, Any]


class Judgement(NamedTuple):
    """What a metric says of some responses."""

    figure: float
    """Under the metric's own name."""
    per_prompt: dict[str, list[float]]
    """Figures that are means over prompts, the metric's own first among them where it is one."""


def metric_path(metric: str) -> Path:
    """The module's file.

    Raises:
        EvaluationError: There is none.
    """
    ours = OURS / f"{metric}.py"
    if ours.is_file():
        return ours
    if (path := own_file(metric)) is not None:
        return path
    names = ", ".join(sorted(path.stem for path in OURS.glob("[a-z]*.py")))
    raise EvaluationError(
        f"evaluation.metrics names {metric!r}, which is neither a file nor one of ours: {names}."
    )


def compares_responses(metric: str) -> bool:
    """Whether a recipe may name it: ours that judge responses, and every file of the user's."""
    return metric in TEXT_METRICS or own_file(metric) is not None


def own_file(metric: str) -> Path | None:
    """The user's module that a recipe names by its file, or by a folder of the same name."""
    given = Path(metric).expanduser()
    return next((p for p in (given, given / f"{given.name}.py") if p.is_file()), None)


def load_module(metric: str) -> Any:
    """A module of the `evaluate` library, from a file of this machine.

    Raises:
        EvaluationError: It does not load.
    """
    import evaluate

    path = metric_path(metric)
    try:
        return evaluate.load(str(path), keep_in_memory=True)
    except Exception as error:
        raise EvaluationError(
            f"The metric module {path} does not load: {_said(error)}. It needs one class that "
            "extends evaluate.Metric, and one import per line."
        ) from error


def load_metrics(section: EvaluationSection) -> list[MetricModule]:
    """The metrics of a recipe, in its order."""
    schema = json.loads(Path(section.json_schema).read_text()) if section.json_schema else None
    return [
        MetricModule(
            metric_path(metric).stem,
            load_module(metric),
            {"schema": schema} if metric_path(metric).stem == "json_validity" else {},
        )
        for metric in section.metrics
    ]


def metric_digests(section: EvaluationSection) -> dict[str, str]:
    """sha256 of each metric's file, and of the JSON schema."""
    digests = {metric: sha256_file(metric_path(metric)) for metric in section.metrics}
    if section.json_schema:
        digests["json_schema"] = sha256_file(Path(section.json_schema))
    return digests


def judge(
    metric: MetricModule, predictions: Sequence[Any], references: Sequence[Any] | None = None
) -> Judgement:
    """A metric's figure, and those it has for each prompt.

    Raises:
        EvaluationError: The module fails, or gives no finite number under its name.
    """
    arguments: dict[str, Any] = {"predictions": list(predictions), **metric.arguments}
    if references is not None:
        arguments["references"] = list(references)
    try:
        found: Mapping[str, Any] = metric.module.compute(**arguments) or {}
        figure = float(found[metric.name]) if metric.name in found else _only_number(found)
    except EvaluationError:
        raise
    except Exception as error:
        raise EvaluationError(f"The metric {metric.name} failed: {_said(error)}.") from error
    if not math.isfinite(figure):
        raise EvaluationError(f"The metric {metric.name} gave {figure}, which is not a score.")
    per_prompt = {
        name: [float(value) for value in values]
        for name, values in (found.get("per_prompt") or {}).items()
        if len(values) == len(predictions)
    }
    return Judgement(figure, per_prompt)


def _only_number(found: Mapping[str, Any]) -> float:
    numbers = [value for value in found.values() if isinstance(value, int | float)]
    if len(numbers) != 1:
        raise EvaluationError(
            f"A metric module gave {sorted(found)}; it must give a number under its own name."
        )
    return float(numbers[0])


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
