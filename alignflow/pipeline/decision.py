"""What a retrain decided, in words, and what a person may do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

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
    retrain = report.get("retrain")
    match decision(retrain):
        case "Promoted":
            assert retrain is not None
            yield "go back", f'alignflow rollback {shlex.quote(retrain["model"])} --reason "..."'
        case "Rejected" | "Inconclusive":
            yield "promote", f'alignflow promote {shlex.quote(report["run_id"])} --reason "..."'
