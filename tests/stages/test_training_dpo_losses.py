"""Every loss of DPO that a recipe may name trains, alone and in mixes; what cannot is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from stage_runs import cases, logged, run_stage

from alignflow.checking.rules import LOSSES
from alignflow.recipe import DPOSection
from alignflow.recipe.preferences import SMOOTHED_LOSSES
from alignflow.stages.spec import StageSpec

Make = Callable[..., StageSpec]
QUICK: dict[str, Any] = {"max_steps": 4, "learning_rate": 5e-2, "logging_steps": 1}


@pytest.mark.parametrize("loss", cases(LOSSES, "sigmoid", "ipo", "aot_unpaired", "bco_pair"))
def test_every_loss_prefers_the_chosen_responses_after_a_few_updates(
    training_spec: Make, loss: str
) -> None:
    smoothing = 0.1 if loss in SMOOTHED_LOSSES else 0.0
    spec = training_spec("dpo", loss_type=loss, label_smoothing=smoothing, **QUICK)
    result = run_stage(spec)
    assert all(math.isfinite(value) for value in logged(spec, "loss"))
    assert (result.metrics["preference_accuracy"] or 0) > 0.9


def test_a_mix_is_the_weighted_sum_of_its_losses(training_spec: Make) -> None:
    """Before the first step: sigmoid log 2, hinge 1, ipo (1 / (2 * 0.5))^2 = 1."""
    mix = {"loss_type": ["sigmoid", "hinge", "ipo"], "loss_weights": [1.0, 2.0, 0.5], "beta": 0.5}
    spec = training_spec("dpo", **mix, **QUICK)
    run_stage(spec)
    assert logged(spec, "loss")[0] == pytest.approx(math.log(2) + 2.0 + 0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "exo_pair"}, "logarithm of label_smoothing, which is 0; set it, to 1e-3"),
        (
            {"loss_type": ["sigmoid", "sft"], "label_smoothing": 0.1},
            r"label_smoothing is 0.1, which \['sigmoid', 'sft'\] would ignore; remove it, or use one",
        ),
        ({"loss_type": ["sigmoid"], "loss_weights": [1, 2]}, "2 numbers for 1 losses"),
    ],
)
def test_what_a_loss_cannot_use_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOSection.model_validate(fields)
