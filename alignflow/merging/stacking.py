"""Adapters on a loaded model: what a merged model is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel

from alignflow.merging.adapter import AdapterStep
from alignflow.modeling import quiet


def adapted(model: Any, step: AdapterStep) -> Any:
    """The model with one step's adapter active, or with several combined by weights."""
    with quiet():
        found = PeftModel.from_pretrained(model, str(step.path))
        if step.weighted:
            named, weights = ["default"], [step.weight]
            for number, (path, weight) in enumerate(step.combine):
                found.load_adapter(str(path), f"other{number}")
                named.append(f"other{number}")
                weights.append(weight)
            found.add_weighted_adapter(named, weights, "combined", combination_type="cat")  # type: ignore[operator]
            found.set_adapter("combined")
    return found


def stacked(model: Any, steps: Sequence[AdapterStep]) -> Any:
    """The model with all steps active side by side: the sum of their deltas, nothing merged."""
    if not steps:
        return model
    model = adapted(model, steps[0])
    active = [*model.active_adapters]
    with quiet():
        for number, step in enumerate(steps[1:]):
            active.append(f"then{number}")
            model.load_adapter(str(step.path), active[-1])
        model.base_model.set_adapter(active)
    return model
