"""From an inbox into the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from alignflow.recipe import Recipe, require_retrain
from tasks.driver import demand_home
from tasks.events import send_pending
from tasks.intake import take_in_complete


@flow(name="ingest", flow_run_name="{recipe.name}")
def ingest(recipe: Recipe, home: Path | None = None, inbox: str | None = None) -> dict[str, Any]:
    """Takes in what is complete in the inbox, and says when there is enough to train on.

    Args:
        recipe: Its section `retrain` names the preference set and how many new rows call for a
            retrain.
        home: Absolute directory of the ledger; None takes ALIGNFLOW_HOME.
        inbox: Folder, or an address that fsspec knows; None is `inbox` in the home.
    """
    section, place = require_retrain(recipe), demand_home(home)
    taken = take_in_complete(place, inbox, section)
    send_pending(place)
    return taken
