"""What a retrain does now, given what the ledger says. Pure: no database, no Prefect.

A run starts on a hint (a clock, an event) and decides from the ledger alone, so that hints may be
late, doubled or lost. An undecided snapshot is always resumed before another one is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from alignflow.ledger import Generation
from alignflow.pipeline import stage_spec
from alignflow.recipe import METHODS, DataSource, Recipe, RetrainSection, require_retrain
from alignflow.stages import Artifact, StageSpec, verify

ORIGINAL_STAGES = ("pretrain", "sft")
"""Stages that a continuation does not run: what they made stays the lineage's."""
MODEL_STAGES = (*ORIGINAL_STAGES, *METHODS, "reward", "merge")


class Step(NamedTuple):
    """What to do now."""

    action: Literal["wait", "resume", "freeze"]
    text: str
    snapshot: str | None = None
    """What is resumed."""


def next_step(
    section: RetrainSection, *, waiting: int, new: int, undecided: str | None = None
) -> Step:
    """Waits for more rows, resumes what is undecided, or freezes what is waiting.

    Args:
        section: Names the set and how many new rows call for a retrain.
        waiting: Rows that would go into a snapshot.
        new: Those of them that came after the last verdict.
        undecided: Name of a frozen snapshot without a verdict.
    """
    if undecided is not None:
        text = f"snapshot {undecided} has no verdict yet: it is resumed"
        return Step("resume", text, undecided)
    if new < section.min_new_pairs:
        text = (
            f"{new} new pairs in {section.preference_set} since the last verdict, "
            f"retrain.min_new_pairs is {section.min_new_pairs}: nothing to do"
        )
        return Step("wait", text)
    return Step("freeze", f"{new} new of {waiting} waiting pairs in {section.preference_set}")


def policy_stage(champion: Generation) -> str | None:
    """Stage that trained the policy last; None where the champion is the base model."""
    return next((name for name in (*METHODS, "sft") if name in champion.artifacts), None)


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


def from_scratch(recipe: Recipe, champion: Generation | None) -> bool:
    """Whether every stage runs: asked for, or there is nothing of a lineage to continue."""
    return (
        require_retrain(recipe).start_from == "base"
        or champion is None
        or policy_stage(champion) is None
        or any(
            getattr(recipe, stage) is not None and stage not in champion.artifacts
            for stage in ORIGINAL_STAGES
        )
    )


def retrain_recipe(
    recipe: Recipe, snapshot: str, champion: Generation | None, held_out: Sequence[DataSource] = ()
) -> Recipe:
    """The recipe that trains on `snapshot`.

    Preferences become the snapshot; what the recipe itself names as preferences is left out, for
    rows that are not in the ledger have no life on record. A continuation has neither pre-training
    nor SFT.

    Args:
        recipe: As deployed.
        snapshot: Name of a frozen snapshot of the recipe's set.
        champion: What is continued.
        held_out: Prompts of the ledger's hold-out, for a judge.
    """
    section = require_retrain(recipe)
    source = DataSource(source=f"ledger:{section.preference_set}@{snapshot}")
    data = {"preferences": [source], "evaluation": [*recipe.data.evaluation, *held_out]}
    continues = not from_scratch(recipe, champion)
    if continues:
        data |= {"pretrain": [], "replay": [], "sft": []}
    changed = {
        "data": recipe.data.model_copy(update=data),
        "evaluation": recipe.evaluation.model_copy(update={"models": _judged(recipe)}),
    }
    return recipe.model_copy(update=changed | (dict.fromkeys(ORIGINAL_STAGES) if continues else {}))


def _judged(recipe: Recipe) -> list[str]:
    """Models that the gate needs figures of: the base for forgetting, the reference for KL."""
    section = require_retrain(recipe)
    wanted = {*recipe.evaluation.models, "aligned"}
    if recipe.data.general and section.gate.max_general_loss_increase is not None:
        wanted.add("base")
    if section.gate.max_kl is not None:
        wanted.add("sft")
    return [name for name in ("base", "sft", "aligned") if name in wanted]


def lineage_artifacts(recipe: Recipe, champion: Generation | None) -> dict[str, Path]:
    """Role to artifact directory of what a continuation starts from; empty from scratch.

    `init` is the champion's policy; `sft` the reference: the lineage's original SFT model, or the
    champion's policy too with `retrain.reference: champion`; `pretrain` the base of both.
    """
    if from_scratch(recipe, champion):
        return {}
    assert champion is not None
    trained_by = policy_stage(champion)
    assert trained_by is not None
    policy = Path(champion.artifacts[trained_by])
    originals = {stage: Path(place) for stage, place in original_artifacts(champion).items()}
    if require_retrain(recipe).reference == "champion":
        return {**originals, "sft": policy}
    return originals if trained_by == "sft" else {**originals, "init": policy}


def champion_spec(recipe: Recipe, home: Path, prepare: Artifact, champion: Generation) -> StageSpec:
    """Scores the champion on the pinned set that the candidate's `prepare` made.

    The same set and champion are Cached.
    """
    stage = policy_stage(champion)
    evaluation = recipe.evaluation.model_copy(update={"models": ["aligned" if stage else "base"]})
    theirs = {"prepare": prepare}
    if stage is not None:
        theirs[recipe.method] = verify(Path(champion.artifacts[stage]))
    if "pretrain" in champion.artifacts:
        theirs["pretrain"] = verify(Path(champion.artifacts["pretrain"]))
    return stage_spec(
        recipe.model_copy(update={"evaluation": evaluation}), "evaluate", home, theirs
    )


def founder_spec(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> StageSpec:
    """Merges the SFT model alone: generation 0, which the first candidate has to beat."""
    theirs = {name: artifacts[name] for name in ("prepare", *ORIGINAL_STAGES) if name in artifacts}
    return stage_spec(recipe, "merge", home, theirs)


def model_artifacts(artifacts: Mapping[str, Artifact], start: Generation | None) -> dict[str, str]:
    """What the ledger keeps of a promoted model: the directories of the stages that made it.

    Args:
        artifacts: Of the run, by stage.
        start: The champion that was continued, whose base and SFT model stay the lineage's; None
            from scratch.
    """
    own = {stage: artifacts[stage].path for stage in MODEL_STAGES if stage in artifacts}
    if start is not None:
        own = {name: path for name, path in own.items() if name not in ORIGINAL_STAGES}
        own |= original_artifacts(start)
    return {**own, "prepare": artifacts["prepare"].path}


def original_artifacts(champion: Generation) -> dict[str, str]:
    """Directories of the base and the SFT model that a lineage goes on from."""
    made = champion.artifacts
    return {stage: made[stage] for stage in ORIGINAL_STAGES if stage in made}
