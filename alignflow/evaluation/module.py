"""What our metrics extend: modules of the `evaluate` library that only compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate


class _Described(evaluate.Metric):
    """Describes itself by its docstring, and its inputs by their type."""

    inputs: Mapping[str, str]

    def _info(self) -> evaluate.MetricInfo:
        features = {name: datasets.Value(kind) for name, kind in self.inputs.items()}
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", features=datasets.Features(features)
        )


class TextMetric(_Described):
    """Of responses (`predictions`) and targets (`references`)."""

    inputs = {"predictions": "string", "references": "string"}  # noqa: RUF012 (a constant)


class NumberMetric(_Described):
    """Of two numbers for each response."""

    inputs = {"predictions": "float64", "references": "float64"}  # noqa: RUF012 (a constant)


def means(**values: Sequence[float]) -> dict[str, Any]:
    """Figures that are means over prompts, with the values behind them."""
    return {
        **{name: sum(each) / len(each) for name, each in values.items()},
        "per_prompt": {name: list(each) for name, each in values.items()},
    }
