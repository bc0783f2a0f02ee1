"""Whether a reward model is good enough to be optimized against. No torch."""

from __future__ import annotations

from alignflow.recipe import RewardedSection
from alignflow.stages import StageResult


def weakness(result: StageResult, section: RewardedSection) -> str | None:
    """Why a method must not optimize a reward stage's model, in a sentence; None if it may."""
    if not section.uses_reward_model:
        return None
    method = type(section).__name__.removesuffix("Section")
    accuracy = result.metrics.get("preference_accuracy")
    low, high = result.details.get("preference_accuracy_interval") or (None, None)
    if accuracy is None or low is None:
        return (
            "The reward model was not measured: no preference pair is held out. Raise "
            f"data.held_out_share so that {method} knows what it optimizes."
        )
    if accuracy >= section.min_reward_accuracy and low > 0.5:
        return None
    return (
        f"The reward model ranks {accuracy:.1%} of held-out pairs rightly (95 % interval "
        f"{low:.1%} to {high:.1%}); {method} needs {section.min_reward_accuracy:.1%} and a lower bound "
        "above 50 %. More or cleaner pairs help; DPO needs no reward model."
    )
