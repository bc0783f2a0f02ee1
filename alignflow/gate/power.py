"""What a hold-out can show: the level of each look at it, and the gain that it can detect."""

from __future__ import annotations

import math

from alignflow.evaluation import prompts_needed, smallest_detectable_effect
from alignflow.recipe import GateSection
from alignflow.stages import Record

USUAL_DISCORDANCE = 0.2


class Power(Record):
    """What the hold-out can show, said before anything is trained."""

    prompts: int
    alpha: float
    power: float
    smallest_detectable: float | None
    smallest_effect: float
    missing_prompts: int
    """Prompts to add for `smallest_effect` to be found with `power`; 0 when there are enough."""
    text: str


def alpha_of(section: GateSection, look: int) -> float:
    """Level of the `look`-th test on one hold-out (from 1).

    Profile strict spends 6 / (pi^2 k^2) of total_alpha on test k, whose sum over all k is 1.
    """
    if section.profile == "balanced":
        return section.alpha
    return section.total_alpha * 6.0 / (math.pi**2 * look**2)


def power_of(
    prompts: int, section: GateSection, look: int = 1, discordance: float | None = None
) -> Power:
    """What that many prompts can show in the `look`-th test on a hold-out.

    `discordance` is the share of prompts on which the models differ; None assumes 20 %.
    """
    share = USUAL_DISCORDANCE if discordance is None else discordance
    share = min(1.0, max(share, section.smallest_effect))
    alpha = alpha_of(section, look)
    detectable = smallest_detectable_effect(prompts, alpha, section.power, share)
    needed = max(
        section.min_prompts, prompts_needed(section.smallest_effect, alpha, section.power, share)
    )
    missing = max(0, needed - prompts)
    gain = "no effect at all" if detectable is None else f"a gain of {detectable:.1%} of prompts"
    advice = f"; add {missing} for {section.smallest_effect:.1%}" if missing else ""
    return Power(
        prompts=prompts,
        alpha=alpha,
        power=section.power,
        smallest_detectable=detectable,
        smallest_effect=section.smallest_effect,
        missing_prompts=missing,
        text=(
            f"{prompts} held-out prompts find {gain} with {section.power:.0%} power at alpha "
            f"{alpha:.4g} (models differing on {share:.0%} of prompts){advice}"
        ),
    )
