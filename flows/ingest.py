"""From an inbox into the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from alignflow.recipe import Recipe, require_retrain
from tasks.driver import demand_home
from tasks.events import send_pending
from tasks.flow_runs import forget_idle
from tasks.form import recipe_of
from tasks.intake import take_in_complete


@flow(name="ingest", flow_run_name="ingest")
def ingest(
    recipe_file: str = "",
    overrides: tuple[str, ...] = (),
    home: Path | None = None,
    inbox: str | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Takes in what is complete in the inbox, and says when there is enough to train on.

    Args:
        recipe_file: A recipe file; in a deployed run an absolute path on storage that every worker
            mounts. Empty takes `recipe`, which a deployment fills in.
        overrides: Fields that are set otherwise, one an entry, such as `dpo.beta=0.2`.
        home: Absolute directory of the ledger; None takes ALIGNFLOW_HOME.
        inbox: Folder, or an address that fsspec knows; None is `inbox` in the home.
        recipe: The whole form: its section `retrain` names the preference set and how many new
            rows call for a retrain.
    """
    place, wanted = demand_home(home), recipe_of(recipe_file, overrides, recipe)
    taken = take_in_complete(wanted.name, place, inbox, require_retrain(wanted))
    send_pending(place)
    forget_idle()
    return taken
