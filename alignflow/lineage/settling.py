"""The lineage's beginning, the verdict in the ledger, and the registry after it."""

from __future__ import annotations

from pathlib import Path

from alignflow.errors import AlignflowError
from alignflow.faults import faultpoint
from alignflow.ledger import PromotionRace, Release, champion, promote, release, set_state
from alignflow.lineage.gating import Gated
from alignflow.lineage.registry import (
    Reconciled,
    drop_candidate,
    reconcile,
    register_candidate,
    verified_model,
)
from alignflow.lineage.retraining import ORIGINAL_STAGES, founder_spec, model_artifacts
from alignflow.lineage.run import RetrainRun
from alignflow.pipeline import Driver
from alignflow.stages import verify
from alignflow.tracking import model_digest

RELEASED: dict[str, Release] = {"reject": "rejected", "inconclusive": "inconclusive"}


def begin_lineage(run: RetrainRun) -> None:
    """Makes the SFT model (else the base) generation 0, where the name has no champion yet.

    It is served from now on: the gate and a person may take their time.
    """
    if champion(run.home, run.work.model) is not None:
        return
    prepare, made = run.artifacts["prepare"], {"prepare": run.artifacts["prepare"].path}
    digest = prepare.digest(("base_model.json",))
    if "sft" in run.artifacts:
        merge = run.aside(founder_spec(run.recipe, run.home, run.artifacts), "founder")
        made |= {
            name: run.artifacts[name].path for name in ORIGINAL_STAGES if name in run.artifacts
        }
        made |= {"merge": merge.path}
        digest = model_digest(merge)
    run.driver.once("found-lineage", _promote_founder, run, digest, made)
    run.tracker.drain()  # else the tracker and `repair` both register the model
    repair(run.home, run.work.model, run.driver)
    run.driver.send_pending(run.home)


def _promote_founder(run: RetrainRun, digest: str, artifacts: dict[str, str]) -> None:
    """Promotes generation 0. It is what there was before: nothing is claimed of it."""
    model = run.work.model
    if "merge" in artifacts:
        verified_model(Path(artifacts["merge"]))
    what = "the SFT model" if "sft" in artifacts else "the base model"
    reason = f"generation 0: {what}, which the first candidate has to beat"
    try:
        promote(run.home, model, expected=None, digest=digest, artifacts=artifacts, reason=reason)
    except PromotionRace:
        run.driver.log().info("another run has founded the lineage of %s", model)
    faultpoint("retrain.founded")


def register(run: RetrainRun) -> None:
    """Has the candidate in the registry, every file verified, before it is gated."""
    run.tracker.drain()
    run.notes.candidate_version = run.driver.patiently("register", _register, run)


def _register(run: RetrainRun) -> str:
    """The candidate's version. Without the registry nothing is promoted: the snapshot waits."""
    merge = verify(run.artifacts["merge"].directory)
    return register_candidate(run.home, run.work.model, merge, snapshot=run.work.snapshot)


def settle(run: RetrainRun, decided: Gated) -> bool:
    """Puts the verdict into the ledger; False where the champion has changed and the gate is due again."""
    outcome = run.driver.once("settle", _settle, run, decided)
    if outcome is None:
        return False
    head = champion(run.home, run.work.model)
    own = head is not None and head.snapshot == run.work.snapshot
    run.notes.outcome = outcome
    run.notes.generation = head.generation if head and own else None
    return True


def _settle(run: RetrainRun, decided: Gated) -> str | None:
    """One transaction: the champion moves and the rows are consumed, or the rows are given back.

    Returns:
        What became of the candidate; None where another one was promoted first.
    """
    work, verdict, log = run.work, decided.verdict, run.driver.log()
    name, artifacts = work.preference_set, model_artifacts(run.artifacts, work.start)
    if set_state(run.home, name, work.model).undecided != work.snapshot:
        return f"snapshot {work.snapshot} was decided by another run"
    if verdict.verdict == "promote":
        verified_model(Path(artifacts["merge"]))
        try:
            made = promote(
                run.home,
                work.model,
                expected=decided.opponent,
                digest=model_digest(run.artifacts["merge"]),
                artifacts=artifacts,
                reason="; ".join(verdict.reasons),
                name=name,
                snapshot=work.snapshot,
            )
        except PromotionRace as race:
            log.warning("%s", race)
            return None
        text = f"promoted: generation {made.generation} of {work.model}"
    else:
        kept = verdict.model_dump_json()
        release(run.home, work.snapshot, RELEASED[verdict.verdict], name=name, reason=kept)
        text = f"{verdict.verdict}: {verdict.reasons[0]}"
    run.driver.forget_approval(run.home, name, work.snapshot)
    log.info("%s", text)
    faultpoint("retrain.settled")
    return text


def project(run: RetrainRun) -> None:
    """Moves the aliases to what the ledger says now."""
    run.driver.patiently("project", _project, run)


def _project(run: RetrainRun) -> None:
    """The registry follows the ledger; a registry that is away is repaired by the next run.

    An inconclusive candidate stays named, for the person who has to look at it.
    """
    model, version, notes = run.work.model, run.notes.candidate_version, run.notes
    if version is not None and notes.verdict != "inconclusive":
        drop_candidate(run.home, model, version)
    _tell(reconcile(run.home, model), run.driver)


def repair(home: Path, model: str, driver: Driver) -> None:
    """Repairs the alias after a crash. A registry that is away does not keep a retrain from training."""
    driver.once("reconcile", _repair, home, model, driver)


def _repair(home: Path, model: str, driver: Driver) -> None:
    try:
        _tell(reconcile(home, model), driver)
    except AlignflowError:
        raise
    except Exception as error:  # MLflow's and its transport's are many
        driver.log().warning("the registry could not be looked at: %s", str(error)[:500])


def _tell(repaired: Reconciled, driver: Driver) -> None:
    """Says what was repaired; an alias that was moved by hand is shown on the run's page."""
    text = repaired.text
    if repaired.by_hand:
        driver.log().error("%s", text)
        driver.show(text, "alias-moved-by-hand", "The registry and the ledger differed.")
    else:
        driver.log().info("%s", text)
