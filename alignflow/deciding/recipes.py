"""The recipe that trains an arm: the user's own, cut down to it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignflow.deciding.arms import ARMS
from alignflow.recipe import (
    ArmName,
    Configuration,
    DataSection,
    DataSource,
    Recipe,
    require_decide,
)

OF_SFT = ("learning_rate", "num_train_epochs")


def recipe_of(
    recipe: Recipe, arm: ArmName, configuration: Configuration, made: Mapping[str, str]
) -> Recipe:
    """The recipe of a tuned arm.

    Args:
        recipe: With its section `decide`.
        arm: A tuned one.
        configuration: What of it is tried.
        made: Files that were made for it: `training` or, with passages, `lessons`; `documents` and
            `paraphrases`.
    """
    row, section = ARMS[arm], require_decide(recipe)
    lessons = made["lessons" if row.context == "retrieved" else "training"]
    pretrains = bool(row.pretrained_on)
    longer = {"num_train_epochs": configuration.pretrain_epochs}
    data = DataSection(
        sft=[DataSource(source=lessons)],
        pretrain=[DataSource(source=made[kind]) for kind in row.pretrained_on],
        replay=recipe.data.replay if pretrains and section.pretrain.replay_share else [],
        general=recipe.data.general,
        held_out_share=0.0,
        trained_turns="last",
        max_dropped_share=recipe.data.max_dropped_share,
    )
    return cut(
        recipe,
        data=data,
        sft=_with(section.sft, {name: getattr(configuration, name) for name in OF_SFT}),
        pretrain=_with(section.pretrain, longer) if pretrains else None,
    )


def cut(recipe: Recipe, **parts: Any) -> Recipe:
    """The recipe without its decision and its alignment, with other parts."""
    bare = dict.fromkeys(("decide", "pretrain", "sft", "reward", "retrain"))
    return recipe.model_copy(update={**bare, "method": "none", **parts})


def _with(section: Any, given: Mapping[str, Any]) -> Any:
    return section.model_copy(update={n: value for n, value in given.items() if value is not None})
