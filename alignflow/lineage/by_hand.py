"""Promotion and rollback by a person: no gate, but a recorded reason and a valid certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from alignflow.errors import RecipeError
from alignflow.ledger import Generation, champion, generation, lineage, promote, rollback
from alignflow.lineage.registry import Reconciled, Registry, reconcile, verified_model
from alignflow.lineage.retraining import original_artifacts
from alignflow.pipeline import load_report, run_named
from alignflow.settings import has_ledger
from alignflow.stages import Artifact
from alignflow.tracking import model_digest


class Moved(NamedTuple):
    """A lineage's new head, and what became of the alias."""

    generation: Generation
    alias: Reconciled


def promote_by_hand(home: Path, source: str, model: str | None, reason: str) -> Moved:
    """Makes a merged model the champion of a name; the rows of its snapshot are consumed.

    Args:
        home: Absolute home.
        source: Id or directory of a run, `last`, or directory of a merge artifact.
        model: Registered name; None is the run's.
        reason: Kept in the ledger.

    Raises:
        RecipeError: There is no such run, it merged nothing, or the name is not known.
        ArtifactError: A file of the model is missing, added or changed.
        CertificateError: It has no certificate that passed.
        DataError: The rows it was trained on are in another snapshot by now.
        PromotionRace: Somebody else promoted in this moment.
    """
    directory, known = _named(home, source)
    name = model or known.get("model")
    if name is None:
        raise RecipeError(f"{source} does not say whose champion it is to be; give --model NAME.")
    merge = verified_model(directory)
    head = champion(home, name) if has_ledger(home) else None
    Registry(home, name).require_version(merge)
    made = promote(
        home,
        name,
        expected=head.generation if head else None,
        digest=model_digest(merge),
        artifacts=_artifacts(merge, head),
        reason=f"by hand: {reason}",
        name=known.get("preference_set", "default"),
        snapshot=known.get("snapshot"),
    )
    return Moved(made, reconcile(home, name))


def roll_back_by_hand(home: Path, model: str, number: int | None, reason: str) -> Moved:
    """Makes an earlier generation the champion again; rows of those after it are given back.

    Args:
        home: Absolute home.
        model: Registered name.
        number: Generation; None is the one before the champion.
        reason: Kept in the ledger.

    Raises:
        RecipeError: The lineage has no such generation.
        ArtifactError: A file of that model is missing, added or changed.
        CertificateError: It has no certificate that passed.
    """
    live = [entry.generation for entry in lineage(home, model)]
    if number is None and len(live) < 2:
        raise RecipeError(
            f"{model} has {len(live)} generations in its lineage, so there is none to go back to."
        )
    wanted = live[-2] if number is None else number
    target = generation(home, model, wanted)
    if target is not None and "merge" in target.artifacts:
        verified_model(Path(target.artifacts["merge"]))
    made = rollback(home, model, wanted, reason)
    return Moved(made, reconcile(home, model))


def _named(home: Path, source: str) -> tuple[Path, dict[str, Any]]:
    """Directory of the merge artifact that a person named, and what is known of its training."""
    run = run_named(source, home)
    if run == source and Path(source).is_dir():
        return Path(source).absolute(), {}
    report = load_report(home, run)
    merge = next((stage.artifact for stage in report.stages if stage.stage == "merge"), None)
    if merge is None:
        raise RecipeError(f"run {source} merged no model, so there is nothing to promote.")
    retrain = report.retrain or {}
    name = report.get("registered_model") or retrain.get("model") or report["recipe"]
    return merge, {**retrain, "model": name}


MADE_BY = ("pretrain", "sft", "aligned")
"""Inputs of a merge that the lineage goes on from."""


def _artifacts(merge: Artifact, head: Generation | None) -> dict[str, str]:
    """What made the model, by stage; base and SFT model of the lineage stay where it has none of its own."""
    inputs = merge.spec.inputs
    own = {"merge": merge.path, "prepare": inputs["data"].path}
    own |= {ref.stage: ref.path for role, ref in inputs.items() if role in MADE_BY}
    return {**(original_artifacts(head) if head else {}), **own}
