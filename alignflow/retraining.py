"""What a retrain does now, given what the ledger says. Pure: no database, no Prefect.

A run starts on a hint (a clock, an event) and decides from the ledger alone, so that hints may be
late, doubled or lost. An undecided snapshot is always resumed before another one is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from alignflow.artifacts import Artifact
from alignflow.plan import stage_spec
from alignflow.recipe import DataSource, Recipe, RetrainSection
from alignflow.stage import Record, StageSpec

LEDGER = "ledger:"
MODEL_STAGES = ("sft", "dpo", "ppo", "reward", "merge")


class Champion(Record):
    """The promoted model of a name, as the ledger has it."""

    generation: int
    digest: str
    """Of the merged model's directory."""
    artifacts: dict[str, str]
    """Stage to artifact directory of what made it; `sft` is the lineage's original one."""


class Situation(Record):
    """What the ledger says of one preference set and one model."""

    waiting: int
    """Rows that would go into a snapshot."""
    new: int
    """Those of them that came after the last verdict."""
    undecided: str | None = None
    """Name of a frozen snapshot without a verdict."""
    champion: Champion | None = None
    looks: int = 0
    """Verdicts given on the present hold-out."""


class Step(Record):
    """What to do now."""

    action: Literal["wait", "resume", "freeze"]
    snapshot: str | None = None
    text: str


def next_step(situation: Situation, section: RetrainSection) -> Step:
    """Waits for more rows, resumes what is undecided, or freezes what is waiting."""
    if situation.undecided is not None:
        return Step(
            action="resume",
            snapshot=situation.undecided,
            text=f"snapshot {situation.undecided} has no verdict yet: it is resumed",
        )
    if situation.new < section.min_new_pairs:
        return Step(
            action="wait",
            text=(
                f"{situation.new} new pairs in {section.preference_set} since the last verdict, "
                f"retrain.min_new_pairs is {section.min_new_pairs}: nothing to do"
            ),
        )
    return Step(
        action="freeze",
        text=f"{situation.new} new of {situation.waiting} waiting pairs in {section.preference_set}",
    )


def replayed(new_rows: int, consumed_rows: int, section: RetrainSection) -> int:
    """Consumed rows that are mixed in, so that they make up `replay_share` of all.

    Args:
        new_rows: Rows of the snapshot that no generation was trained on.
        consumed_rows: Rows there are to draw from.
        section: With start_from base every consumed row is used.
    """
    if section.start_from == "base":
        return consumed_rows
    wanted = round(new_rows * section.replay_share / (1.0 - section.replay_share))
    return min(wanted, consumed_rows)


def model_name(recipe: Recipe) -> str:
    """The registered name whose champion a recipe contends for."""
    return recipe.tracking.registered_model or recipe.name


def from_scratch(recipe: Recipe, champion: Champion | None) -> bool:
    """Whether every stage runs: asked for, or there is no champion with an adapter to continue."""
    section = require_retrain(recipe)
    return (
        section.start_from == "base"
        or champion is None
        or recipe.method == "none"
        or recipe.method not in champion.artifacts
        or (recipe.sft is not None and "sft" not in champion.artifacts)
    )


def require_retrain(recipe: Recipe) -> RetrainSection:
    """The recipe's section.

    Raises:
        RecipeError: There is none.
    """
    if recipe.retrain is None:
        from alignflow.errors import RecipeError

        raise RecipeError(
            f"recipe {recipe.name} has no `retrain` section; add one (`retrain: {{}}`)"
        )
    return recipe.retrain


def retrain_recipe(recipe: Recipe, snapshot: str, champion: Champion | None) -> Recipe:
    """The recipe that trains on `snapshot`.

    Preferences become the snapshot; what the recipe itself names as preferences is left out, for
    rows that are not in the ledger have no life on record. A continuation has no SFT stage.
    """
    section = require_retrain(recipe)
    source = DataSource(source=f"{LEDGER}{section.preference_set}@{snapshot}")
    data: dict[str, Any] = {"preferences": [source]}
    changed: dict[str, Any] = {}
    if not from_scratch(recipe, champion):
        data["sft"] = []
        changed["sft"] = None
    changed["data"] = recipe.data.model_copy(update=data)
    return recipe.model_copy(update=changed)


def lineage_artifacts(recipe: Recipe, champion: Champion | None) -> dict[str, Path]:
    """Role to artifact directory of what a continuation starts from; empty from scratch.

    `init` is the champion's adapter; `sft` the reference: the lineage's original SFT adapter, or
    the champion's too with `retrain.reference: champion`.
    """
    if from_scratch(recipe, champion):
        return {}
    assert champion is not None
    init = Path(champion.artifacts[recipe.method])
    if require_retrain(recipe).reference == "champion":
        return {"init": init, "sft": init}
    original = champion.artifacts.get("sft")
    return {"init": init, **({"sft": Path(original)} if original else {})}


def continued_spec(
    recipe: Recipe, stage: str, home: Path, artifacts: Mapping[str, Artifact]
) -> StageSpec:
    """`plan.stage_spec`, with the role `init` for the stage that continues the champion's policy.

    Args:
        recipe: What `retrain_recipe` made.
        stage: The stage.
        home: Absolute home.
        artifacts: Finished stages by name; `init` is the champion's policy.
    """
    stages = {name: artifact for name, artifact in artifacts.items() if name != "init"}
    spec = stage_spec(recipe, stage, home, stages)
    if stage != recipe.method or "init" not in artifacts:
        return spec
    return spec.model_copy(update={"inputs": {**spec.inputs, "init": artifacts["init"].ref()}})


def champion_spec(
    recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact], champion: Artifact
) -> StageSpec:
    """Scores the champion on the candidate's pinned set; the same set and champion are Cached.

    Args:
        recipe: The candidate's recipe.
        home: Absolute home.
        artifacts: The candidate's, for data and reference.
        champion: The stage that trained the champion's policy.
    """
    evaluation = recipe.evaluation.model_copy(update={"models": ["aligned"]})
    theirs = {
        **{name: artifacts[name] for name in ("prepare", "sft", "reward") if name in artifacts},
        recipe.method: champion,
    }
    return stage_spec(
        recipe.model_copy(update={"evaluation": evaluation}), "evaluate", home, theirs
    )


def model_artifacts(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """What the ledger keeps of a promoted model: the directories of the stages that made it."""
    return {
        stage: artifacts[stage].path for stage in (*MODEL_STAGES, "prepare") if stage in artifacts
    }
