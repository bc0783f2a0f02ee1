"""Homes, recipes and oracles of retrains on fake stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_runs import fake_recipe
from ledger_cases import row, write

from alignflow.ledger import add, champion, renew_holdout, set_state, status
from alignflow.recipe import Recipe

MODEL = "fake"
QUICK_GATE = {"bootstrap_resamples": 200}


def retrain_recipe(**retrain: Any) -> Recipe:
    """The fake recipe, with a gate that resamples little."""
    section = {"min_new_pairs": 20, "gate": QUICK_GATE, **retrain}
    return fake_recipe(retrain=section, evaluation={"bootstrap_resamples": 100})


def drop(home: Path, first: int, last: int) -> None:
    """Takes in preferences, none of them held out."""
    if not (home / "ledger.db").exists():
        renew_holdout(home, 0.0)
    path = home.parent / f"rows-{first}-{last}.jsonl"
    add(home, [write(path, [row(number) for number in range(first, last)])])


def where(home: Path) -> tuple[int, int, int]:
    """Rows that wait, that are reserved, and that are consumed."""
    found = status(home)
    return found["waiting"], found["reserved"], found["consumed"]


def head(home: Path) -> int | None:
    """Generation of the champion."""
    found = champion(home, MODEL)
    return found.generation if found else None


def aliases(home: Path) -> dict[str, str]:
    """Alias to version of the registered model."""
    from alignflow.tracking import registry_client, tracking_uri

    found = registry_client(tracking_uri(home)).search_registered_models(f"name = '{MODEL}'")
    return {name: str(version) for name, version in found[0].aliases.items()} if found else {}


def tags(home: Path, version: str) -> dict[str, str]:
    """Tags of a version of the registered model."""
    from alignflow.tracking import registry_client, tracking_uri

    return dict(registry_client(tracking_uri(home)).get_model_version(MODEL, version).tags)


def description(home: Path) -> str:
    """Of the registered model."""
    from alignflow.tracking import registry_client, tracking_uri

    return str(registry_client(tracking_uri(home)).get_registered_model(MODEL).description)


def served(home: Path) -> str | None:
    """Digest of the model behind the alias `champion`."""
    version = aliases(home).get("champion")
    return None if version is None else tags(home, version)["model_digest"]


def undecided(home: Path) -> str | None:
    """Name of the snapshot without a verdict."""
    return set_state(home, "default", MODEL).undecided
