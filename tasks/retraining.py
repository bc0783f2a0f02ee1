"""One retrain: what the ledger asks for, and a run that continues the champion's lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from alignflow.errors import RecipeError
from alignflow.faults import faultpoint
from alignflow.gate.contest import decides, pinned_prompts
from alignflow.gate.gate import plan
from alignflow.ledger import (
    Generation,
    freeze,
    generation,
    holdout_prompts_file,
    mark_dropped,
    set_state,
)
from alignflow.lineage.retraining import (
    Champion,
    Situation,
    continued_spec,
    from_scratch,
    lineage_artifacts,
    next_step,
    replayed,
    retrain_recipe,
)
from alignflow.recipe import DataSource, Recipe, require_retrain
from alignflow.stages.artifacts import verify
from alignflow.stages.layout import Prepared
from alignflow.stages.spec import Record, StageSpec
from tasks.approval import awaited_elsewhere
from tasks.pipeline import PipelineRun, new_run_id
from tasks.prefect_artifacts import show_markdown


class Plan(Record):
    """What this run does."""

    action: Literal["wait", "train"]
    text: str
    recipe: Recipe
    """As frozen with the snapshot, its preferences the snapshot's."""
    snapshot: str = ""
    rows: int = 0
    replayed: int = 0
    start: Champion | None = None
    """What is continued; None from scratch."""

    @property
    def preference_set(self) -> str:
        """Name of the set that the snapshot is of."""
        return require_retrain(self.recipe).preference_set

    @property
    def model(self) -> str:
        """Registered name whose champion the candidate contends with."""
        return self.recipe.registered_model


@task(name="look", task_run_name="look", cache_policy=NO_CACHE)
def look(recipe: Recipe, home: Path) -> Plan:
    """Asks the ledger, whatever the event said, and freezes the waiting rows if there are enough.

    Args:
        recipe: As deployed.
        home: Absolute home.

    Raises:
        RecipeError: There is no `retrain` section, or the undecided snapshot is another model's.
    """
    section, name = require_retrain(recipe), recipe.registered_model
    state = set_state(home, section.preference_set, name)
    step = next_step(
        Situation(waiting=state.waiting, new=state.new, undecided=state.undecided), section
    )
    elsewhere = state.undecided and awaited_elsewhere(home, section.preference_set, state.undecided)
    if step.action == "wait" or elsewhere:
        return Plan(action="wait", text=elsewhere or step.text, recipe=recipe)
    head = state.champion
    frozen = freeze(
        home,
        section.preference_set,
        recipe=recipe.model_dump_json(),
        champion=head.generation if head else None,
        replay=lambda new, consumed: replayed(new, consumed, section),
    )
    faultpoint("retrain.frozen")
    own = _own_recipe(frozen.recipe, recipe, frozen.name)
    start = _continued(home, name, frozen.champion) if frozen.recipe else as_champion(head)
    start = None if from_scratch(own, start) else start
    trained = retrain_recipe(own, frozen.name, start, _held_out(home, own))
    return Plan(
        action="train",
        text=f"{step.text}; {frozen.rows - frozen.replayed} new and {frozen.replayed} replayed rows",
        recipe=trained,
        snapshot=frozen.name,
        rows=frozen.rows,
        replayed=frozen.replayed,
        start=start,
    )


def _own_recipe(stored: str | None, deployed: Recipe, snapshot: str) -> Recipe:
    """The recipe that was frozen with a snapshot; one frozen by hand has none."""
    if stored is None:
        return deployed
    own = Recipe.model_validate_json(stored)
    if own.registered_model != deployed.registered_model:
        raise RecipeError(
            f"snapshot {snapshot} was frozen for {own.registered_model} and has no verdict yet, so "
            f"{deployed.registered_model} cannot have its rows. Give each model a set of its own "
            "(retrain.preference_set)."
        )
    if own != deployed:
        get_run_logger().warning(
            "%s is resumed with the recipe it was frozen with, which is not the deployed one; if that "
            "recipe cannot finish, `alignflow prefs withdraw %s` gives its rows back",
            snapshot, snapshot,
        )  # fmt: skip
    return own


def _continued(home: Path, model: str, number: int | None) -> Champion | None:
    return None if number is None else as_champion(generation(home, model, number))


def as_champion(found: Generation | None) -> Champion | None:
    """A generation of the ledger, as what it is for a retrain."""
    if found is None:
        return None
    return Champion(generation=found.generation, digest=found.digest, artifacts=found.artifacts)


def _held_out(home: Path, recipe: Recipe) -> list[DataSource]:
    """The hold-out's prompts, where a judge will compare answers to them."""
    if decides(recipe) != "judge":
        return []
    path = holdout_prompts_file(home, require_retrain(recipe).preference_set)
    return [DataSource(source=str(path))] if path else []


class RetrainRun(PipelineRun):
    """A run that starts from a champion's artifacts, on one snapshot."""

    def __init__(self, planned: Plan, home: Path, reason: str) -> None:
        super().__init__(planned.recipe, home, new_run_id(planned.recipe.name))
        self.plan = planned
        self.opponent = -1
        """Generation that the candidate was gated against last."""
        self.artifacts |= {
            role: verify(path)
            for role, path in lineage_artifacts(self.recipe, planned.start).items()
        }
        self.notes["retrain"] = {
            "reason": reason,
            "model": planned.model,
            "preference_set": planned.preference_set,
            "snapshot": planned.snapshot,
            "rows": planned.rows,
            "replayed": planned.replayed,
            "continues": planned.start.generation if planned.start else None,
        }

    def note(self, **values: object) -> None:
        """Adds to what the report says of the retrain."""
        self.notes["retrain"] |= values

    def spec_of(self, stage: str) -> StageSpec:
        """What `stage` has to do, starting from the champion."""
        return continued_spec(self.recipe, stage, self.home, self.artifacts)

    def complete(self, stage: str) -> None:
        """See PipelineRun; after `prepare` it is said what the gate will be able to find."""
        super().complete(stage)
        if stage == "prepare":
            account_for(self)


def account_for(run: RetrainRun) -> None:
    """Records the rows that `prepare` dropped, and says what the hold-out can show."""
    prepare = run.artifacts["prepare"]
    dropped = json.loads(Prepared(prepare.directory).dropped.read_text())
    if dropped:
        mark_dropped(run.home, run.plan.preference_set, dropped)
    state = set_state(run.home, run.plan.preference_set, run.plan.model)
    section = require_retrain(run.recipe)
    power = plan(pinned_prompts(prepare, run.recipe), section.gate, state.looks + 1)
    run.note(dropped=len(dropped), power=power.model_dump(mode="json"))
    get_run_logger().info("%s", power.text)
    show_markdown(power.text, "gate-power", "What the evaluation set can show, before training.")
