"""Metrics as modules of the `evaluate` library: ours by name, the user's own by path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, ValidationError

from alignflow.errors import AlignflowError, EvaluationError, RecipeError
from alignflow.evaluation import about
from alignflow.files import sha256_file
from alignflow.recipe import EvaluationSection, MetricArguments, MetricUse

ROUNDING = 1e-6
"""A figure may be that far out of its range."""


class MetricModule(NamedTuple):
    """A metric, loaded."""

    name: str
    module: Any
    arguments: dict[str, Any]

    @property
    def leading_name(self) -> str:
        """Second name of its figure where it is the recipe's first metric."""
        ours = about.declared().get(self.name)
        return ours.leading_name if ours else about.LEADING_NAME


class MetricFigures(NamedTuple):
    """What a metric gives of some responses."""

    figure: float
    """Under the metric's own name."""
    per_prompt: dict[str, list[float]]
    """Figures that are means over prompts, the metric's own first among them where it is one."""


class OwnArguments(MetricArguments):
    """Arguments of a user's own module, which checks them itself."""

    model_config = ConfigDict(extra="allow")


def metric_path(metric: str) -> Path:
    """The module's file.

    Raises:
        EvaluationError: There is none.
    """
    ours = about.OURS / f"{metric}.py"
    if ours.is_file():
        return ours
    if (path := own_file(metric)) is not None:
        return path
    raise EvaluationError(
        f"evaluation.metrics names {metric!r}, which is neither a file nor one of ours: "
        f"{', '.join(about.declared())}."
    )


def compares_responses(metric: str) -> bool:
    """Whether a recipe may name it: ours that judge responses, and every file of the user's."""
    return metric in about.text_metrics() or own_file(metric) is not None


def own_file(metric: str) -> Path | None:
    """The user's module that a recipe names by its file, or by a folder of the same name."""
    given = Path(metric).expanduser()
    return next((p for p in (given, given / f"{given.name}.py") if p.is_file()), None)


def arguments_of(section: EvaluationSection, use: MetricUse) -> MetricArguments:
    """A metric's arguments; what is left out is the section's field of that name, if there is one.

    Raises:
        RecipeError: The metric takes no such arguments.
    """
    ours = about.declared().get(use.name)
    kind = ours.arguments if ours else OwnArguments
    fields = [name for name in kind.model_fields if name in EvaluationSection.model_fields]
    try:
        return kind.model_validate(
            {name: getattr(section, name) for name in fields} | use.arguments
        )
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False)
        )
        known = ", ".join(kind.model_fields) or "none"
        raise RecipeError(
            f"evaluation.metrics: {use.name}: {wrong}. Its arguments are: {known}."
        ) from error


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
    return [
        MetricModule(
            metric_path(use.name).stem, load_module(use.name), dict(arguments_of(section, use))
        )
        for use in section.uses
    ]


def judging_files(section: EvaluationSection) -> list[str]:
    """Files that figures depend on, as the recipe names them: own modules, and what metrics read."""
    own = [use.name for use in section.uses if own_file(use.name) is not None]
    read = [file for use in section.uses for file in arguments_of(section, use).files]
    schema = [section.json_schema] if section.json_schema else []
    return list(dict.fromkeys([*own, *schema, *read]))


def metric_digests(section: EvaluationSection) -> dict[str, str]:
    """sha256 of each metric's file, and of what metrics read."""
    modules = {use.name: sha256_file(metric_path(use.name)) for use in section.uses}
    return modules | {name: sha256_file(_file(name)) for name in judging_files(section)}


def _file(name: str) -> Path:
    return own_file(name) or Path(name).expanduser()


def compute_metric(
    metric: MetricModule, predictions: Sequence[Any], references: Sequence[Any] | None = None
) -> MetricFigures:
    """A metric's figure, and those it has for each prompt.

    Raises:
        AlignflowError: The module fails, or gives no finite number of its range under its name.
    """
    arguments: dict[str, Any] = {"predictions": list(predictions), **metric.arguments}
    if references is not None:
        arguments["references"] = list(references)
    try:
        given: Mapping[str, Any] = metric.module.compute(**arguments) or {}
        figure = float(given[metric.name]) if metric.name in given else _only_number(given)
    except AlignflowError:
        raise
    except Exception as error:
        raise EvaluationError(f"The metric {metric.name} failed: {_said(error)}.") from error
    ours = about.declared().get(metric.name)
    lowest, highest = (ours.lowest, ours.highest) if ours else (-math.inf, math.inf)
    if not math.isfinite(figure) or not lowest - ROUNDING <= figure <= highest + ROUNDING:
        raise EvaluationError(f"The metric {metric.name} gave {figure}, which is not a score.")
    per_prompt = {
        name: [float(value) for value in values]
        for name, values in (given.get("per_prompt") or {}).items()
        if len(values) == len(predictions)
    }
    return MetricFigures(figure, per_prompt)


def _only_number(given: Mapping[str, Any]) -> float:
    numbers = [value for value in given.values() if isinstance(value, int | float)]
    if len(numbers) != 1:
        raise EvaluationError(
            f"A metric module gave {sorted(given)}; it must give a number under its own name."
        )
    return float(numbers[0])


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
