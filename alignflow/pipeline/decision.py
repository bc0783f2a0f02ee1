"""What a retrain decided, in words, and what a person may do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignflow.settings import resolve_home

NAMES = {"promote": "Promoted", "reject": "Rejected", "inconclusive": "Inconclusive"}
NOTHING_TO_DO = "Nothing to do"


def decision(retrain: Mapping[str, Any] | None) -> str | None:
    """The verdict on a run's candidate; None of a run that is no retrain or has not come so far.

    A candidate that another run's verdict overtook had nothing to do.
    """
    if not retrain or not retrain.get("outcome"):
        return None
    if retrain.get("verdict") == "promote" and retrain.get("generation") is None:
        return NOTHING_TO_DO
    return NAMES.get(str(retrain.get("verdict")), NOTHING_TO_DO)


def sentence(retrain: Mapping[str, Any] | None) -> str | None:
    """The verdict with its reasons, and who is served now; None where there is no `decision`."""
    decided = decision(retrain)
    if not retrain or decided is None:
        return None
    reasons = (retrain.get("gate") or {}).get("reasons") or [retrain["outcome"]]
    told = f"{decided}: {'; '.join(reasons)}."
    if retrain.get("generation") is not None:
        return f"{told} {retrain['model']} is generation {retrain['generation']} now."
    if retrain.get("champion") is not None:
        return f"{told} {retrain['model']} stays generation {retrain['champion']}."
    return told


def next_steps(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Commands of a person who sees it otherwise."""
    retrain = report.get("retrain") or {}
    there = "".join(f" {shlex.quote(word)}" for word in home_option(report))
    match decision(retrain):
        case "Promoted":
            yield (
                "go back",
                f'alignflow rollback {shlex.quote(retrain["model"])} --reason "..."{there}',
            )
        case "Rejected" | "Inconclusive":
            run = shlex.quote(report["run_id"])
            yield "promote", f'alignflow promote {run} --reason "..."{there}'


def home_of(report: Mapping[str, Any]) -> Path | None:
    """The home that a run's artifacts lie in; None where it made none."""
    artifacts = (stage["artifact"] for stage in report["stages"] if stage["artifact"])
    return next((Path(artifact).parents[2] for artifact in artifacts), None)


def home_option(report: Mapping[str, Any]) -> list[str]:
    """What a command about a run is given so that it finds it from here."""
    home = home_of(report)
    return [] if home in (None, resolve_home(None)) else ["--home", str(home)]
