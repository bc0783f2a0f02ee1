"""What there is to do: the ledger is asked, and enough new rows are frozen as a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alignflow.errors import RecipeError
from alignflow.faults import faultpoint
from alignflow.gate import decides
from alignflow.ledger import Generation, freeze, generation, holdout_prompts_file, set_state
from alignflow.lineage.retraining import from_scratch, next_step, replayed, retrain_recipe
from alignflow.pipeline import Driver
from alignflow.recipe import DataSource, Recipe, require_retrain
from alignflow.stages import Record


class Waiting(Record):
    """There is nothing to train on now."""

    status: Literal["waiting"] = "waiting"
    text: str
    """Why."""


class Assignment(Record):
    """What a retrain trains: one snapshot, from one generation on."""

    text: str
    recipe: Recipe
    """As frozen with the snapshot, its preferences the snapshot's."""
    snapshot: str
    rows: int
    replayed: int
    start: Generation | None
    """What is continued; None from scratch."""

    @property
    def preference_set(self) -> str:
        """Name of the set that the snapshot is of."""
        return require_retrain(self.recipe).preference_set

    @property
    def model(self) -> str:
        """Registered name whose champion the candidate contends with."""
        return self.recipe.registered_model


def look(recipe: Recipe, home: Path, driver: Driver) -> Assignment | Waiting:
    """Asks the ledger, whatever the event said, and freezes the waiting rows if there are enough.

    Raises:
        RecipeError: There is no `retrain` section, or the undecided snapshot is another model's.
    """
    return driver.once("look", _look, recipe, home, driver)


def _look(recipe: Recipe, home: Path, driver: Driver) -> Assignment | Waiting:
    section, name = require_retrain(recipe), recipe.registered_model
    state = set_state(home, section.preference_set, name)
    step = next_step(section, waiting=state.waiting, new=state.new, undecided=state.undecided)
    elsewhere = state.undecided and driver.awaited_elsewhere(
        home, section.preference_set, state.undecided
    )
    if step.action == "wait" or elsewhere:
        return Waiting(text=elsewhere or step.text)
    head = state.champion
    frozen = freeze(
        home,
        section.preference_set,
        recipe=recipe.model_dump_json(),
        champion=head.generation if head else None,
        replay=lambda new, consumed: replayed(new, consumed, section),
    )
    faultpoint("retrain.frozen")
    own = _own_recipe(frozen.recipe, recipe, frozen.name, driver)
    start = head
    if frozen.recipe:
        start = None if frozen.champion is None else generation(home, name, frozen.champion)
    start = None if from_scratch(own, start) else start
    return Assignment(
        text=f"{step.text}; {frozen.rows - frozen.replayed} new and {frozen.replayed} replayed rows",
        recipe=retrain_recipe(own, frozen.name, start, _held_out(home, own)),
        snapshot=frozen.name,
        rows=frozen.rows,
        replayed=frozen.replayed,
        start=start,
    )


def _own_recipe(stored: str | None, deployed: Recipe, snapshot: str, driver: Driver) -> Recipe:
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
        driver.log().warning(
            "%s is resumed with the recipe it was frozen with, which is not the deployed one; if "
            "that recipe cannot finish, `alignflow prefs withdraw %s` gives its rows back",
            snapshot,
            snapshot,
        )
    return own


def _held_out(home: Path, recipe: Recipe) -> list[DataSource]:
    """The hold-out's prompts, where a judge will compare answers to them."""
    if decides(recipe) != "judge":
        return []
    path = holdout_prompts_file(home, require_retrain(recipe).preference_set)
    return [DataSource(source=str(path))] if path else []
