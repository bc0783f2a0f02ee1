"""What a retrain does now, given what the ledger says. Pure: no database, no Prefect.

A run starts on a hint (a clock, an event) and decides from the ledger alone, so that hints may be
late, doubled or lost. An undecided snapshot is always resumed before another one is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import METHODS, DataSource, Recipe, RetrainSection, require_retrain
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import Record, StageSpec

LEDGER = "ledger:"
ORIGINAL_STAGES = ("pretrain", "sft")
"""Stages that a continuation does not run: what they made stays the lineage's."""
MODEL_STAGES = (*ORIGINAL_STAGES, *METHODS, "reward", "merge")


class Champion(Record):
    """The promoted model of a name, as the ledger has it."""

    generation: int
    digest: str
    """Of the merged model's files; of the base model where generation 0 is the base."""
    artifacts: dict[str, str]
    """Stage to artifact directory of what made it; `sft` is the lineage's original one."""

    @property
    def policy_stage(self) -> str | None:
        """Stage that trained the policy last; None where the champion is the base model."""
        return next((name for name in (*METHODS, "sft") if name in self.artifacts), None)


class Situation(Record):
    """What the ledger says of one preference set and one model."""

    waiting: int
    """Rows that would go into a snapshot."""
    new: int
    """Those of them that came after the last verdict."""
    undecided: str | None = None
    """Name of a frozen snapshot without a verdict."""


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


def from_scratch(recipe: Recipe, champion: Champion | None) -> bool:
    """Whether every stage runs: asked for, or there is nothing of a lineage to continue."""
    return (
        require_retrain(recipe).start_from == "base"
        or champion is None
        or champion.policy_stage is None
        or any(
            getattr(recipe, stage) is not None and stage not in champion.artifacts
            for stage in ORIGINAL_STAGES
        )
    )


def retrain_recipe(
    recipe: Recipe, snapshot: str, champion: Champion | None, held_out: Sequence[DataSource] = ()
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
    source = DataSource(source=f"{LEDGER}{section.preference_set}@{snapshot}")
    data: dict[str, Any] = {
        "preferences": [source],
        "evaluation": [*recipe.data.evaluation, *held_out],
    }
    changed: dict[str, Any] = {}
    if not from_scratch(recipe, champion):
        data |= {"pretrain": [], "replay": [], "sft": []}
        changed |= dict.fromkeys(ORIGINAL_STAGES)
    changed["data"] = recipe.data.model_copy(update=data)
    changed["evaluation"] = recipe.evaluation.model_copy(update={"models": _judged(recipe)})
    return recipe.model_copy(update=changed)


def _judged(recipe: Recipe) -> list[str]:
    """Models that the gate needs figures of: the base for forgetting, the reference for KL."""
    section = require_retrain(recipe)
    wanted = {*recipe.evaluation.models, "aligned"}
    if recipe.data.general and section.gate.max_general_loss_increase is not None:
        wanted.add("base")
    if section.gate.max_kl is not None:
        wanted.add("sft")
    return [name for name in ("base", "sft", "aligned") if name in wanted]


def lineage_artifacts(recipe: Recipe, champion: Champion | None) -> dict[str, Path]:
    """Role to artifact directory of what a continuation starts from; empty from scratch.

    `init` is the champion's policy; `sft` the reference: the lineage's original SFT model, or the
    champion's policy too with `retrain.reference: champion`; `pretrain` the base of both.
    """
    if from_scratch(recipe, champion):
        return {}
    assert champion is not None and champion.policy_stage is not None
    policy = Path(champion.artifacts[champion.policy_stage])
    originals = {
        stage: Path(champion.artifacts[stage])
        for stage in ORIGINAL_STAGES
        if stage in champion.artifacts
    }
    if require_retrain(recipe).reference == "champion":
        return {**originals, "sft": policy}
    return originals if champion.policy_stage == "sft" else {**originals, "init": policy}


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
    spec = stage_spec(recipe, stage, home, artifacts)
    if stage not in METHODS or "init" not in artifacts:
        return spec
    return spec.model_copy(update={"inputs": {**spec.inputs, "init": artifacts["init"].ref()}})


def champion_spec(
    recipe: Recipe,
    home: Path,
    prepare: Artifact,
    champion: Champion,
    load: Callable[[Path], Artifact],
) -> StageSpec:
    """Scores the champion on the candidate's pinned set; the same set and champion are Cached.

    Args:
        recipe: The candidate's recipe.
        home: Absolute home.
        prepare: The candidate's, for the pinned set.
        champion: Whom the candidate contends with.
        load: Reads an artifact and checks it.
    """
    stage = champion.policy_stage
    evaluation = recipe.evaluation.model_copy(update={"models": ["aligned" if stage else "base"]})
    theirs = {"prepare": prepare}
    if stage is not None:
        theirs[recipe.method] = load(Path(champion.artifacts[stage]))
    if "pretrain" in champion.artifacts:
        theirs["pretrain"] = load(Path(champion.artifacts["pretrain"]))
    return stage_spec(
        recipe.model_copy(update={"evaluation": evaluation}), "evaluate", home, theirs
    )


def founder_spec(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> StageSpec:
    """Merges the SFT model alone: generation 0, which the first candidate has to beat."""
    theirs = {name: artifacts[name] for name in ("prepare", *ORIGINAL_STAGES) if name in artifacts}
    return stage_spec(recipe, "merge", home, theirs)


def model_artifacts(artifacts: Mapping[str, Artifact], start: Champion | None) -> dict[str, str]:
    """What the ledger keeps of a promoted model: the directories of the stages that made it.

    Args:
        artifacts: Of the run, by stage.
        start: The champion that was continued, whose base and SFT model stay the lineage's; None
            from scratch.
    """
    own = {stage: artifacts[stage].path for stage in MODEL_STAGES if stage in artifacts}
    if start is not None:
        theirs = start.artifacts
        own = {name: path for name, path in own.items() if name not in ORIGINAL_STAGES}
        own |= {name: theirs[name] for name in ORIGINAL_STAGES if name in theirs}
    return {**own, "prepare": artifacts["prepare"].path}
