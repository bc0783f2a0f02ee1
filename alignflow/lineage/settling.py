"""The lineage's beginning, the verdict in the ledger, and the registry after it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alignflow.errors import AlignflowError
from alignflow.faults import faultpoint
from alignflow.ledger import PromotionRace, champion, promote, release, set_state
from alignflow.ledger.verdicts import Release
from alignflow.lineage.gating import Gated
from alignflow.lineage.look import Assignment
from alignflow.lineage.registry import (
    Reconciled,
    drop_candidate,
    reconcile,
    register_candidate,
    verified_model,
)
from alignflow.lineage.retraining import ORIGINAL_STAGES, Champion, founder_spec, model_artifacts
from alignflow.lineage.run import RetrainRun
from alignflow.pipeline.driver import Driver
from alignflow.stages.artifacts import verify
from alignflow.tracking import model_digest

RELEASED: Final[dict[str, Release]] = {"reject": "rejected", "inconclusive": "inconclusive"}


def begin_lineage(run: RetrainRun) -> None:
    """Makes the SFT model (else the base) generation 0, where the name has no champion yet.

    It is served from now on: the gate and a person may take their time.
    """
    if champion(run.home, run.work.model) is not None:
        return
    prepare, made = run.artifacts["prepare"], {"prepare": run.artifacts["prepare"].path}
    digest = prepare.digest(("base_model.json",))
    if "sft" in run.artifacts:
        merge = run.aside(founder_spec(run.recipe, run.home, run.artifacts))
        made |= {
            name: run.artifacts[name].path for name in ORIGINAL_STAGES if name in run.artifacts
        }
        made |= {"merge": merge.path}
        digest = model_digest(merge)
    founder = Champion(generation=0, digest=digest, artifacts=made)
    run.driver.once("found-lineage", promote_founder, run.home, run.work.model, founder, run.driver)
    run.tracker.drain()  # else the tracker and `repair` both register the model
    repair(run.home, run.work.model, run.driver)
    run.driver.send_pending(run.home)


def promote_founder(home: Path, model: str, founder: Champion, driver: Driver) -> None:
    """Promotes generation 0. It is what there was before: nothing is claimed of it."""
    if "merge" in founder.artifacts:
        verified_model(Path(founder.artifacts["merge"]))
    what = "the SFT model" if "sft" in founder.artifacts else "the base model"
    reason = f"generation 0: {what}, which the first candidate has to beat"
    artifacts = founder.artifacts
    try:
        promote(
            home, model, expected=None, digest=founder.digest, artifacts=artifacts, reason=reason
        )
    except PromotionRace:
        driver.log.info("another run has founded the lineage of %s", model)
    faultpoint("retrain.founded")


def register(run: RetrainRun) -> None:
    """Has the candidate in the registry, every file verified, before it is gated."""
    run.tracker.drain()
    run.notes.candidate_version = run.driver.patiently(
        "register",
        register_merged,
        run.home,
        run.work.model,
        run.artifacts["merge"].path,
        run.work.snapshot,
    )


def register_merged(home: Path, model: str, merge: str, snapshot: str) -> str:
    """The candidate's version. Without the registry nothing is promoted: the snapshot waits."""
    return register_candidate(home, model, verify(Path(merge)), snapshot=snapshot)


def settle(run: RetrainRun, decided: Gated) -> bool:
    """Puts the verdict into the ledger; False where the champion has changed and the gate is due again."""
    work = run.work
    digest = model_digest(run.artifacts["merge"])
    artifacts = model_artifacts(run.artifacts, work.start)
    outcome = run.driver.once(
        "settle", settle_verdict, run.home, work, decided, digest, artifacts, run.driver
    )
    if outcome is None:
        return False
    head = champion(run.home, work.model)
    own = head is not None and head.snapshot == work.snapshot
    run.notes.outcome = outcome
    run.notes.generation = head.generation if head and own else None
    return True


def settle_verdict(
    home: Path,
    work: Assignment,
    decided: Gated,
    digest: str,
    artifacts: dict[str, str],
    driver: Driver,
) -> str | None:
    """One transaction: the champion moves and the rows are consumed, or the rows are given back.

    Args:
        home: Absolute home.
        work: What the run is about.
        decided: The gate's verdict and, where asked, a person's.
        digest: Of the candidate's merged model.
        artifacts: Of the candidate, for the ledger.
        driver: Where it is said.

    Returns:
        What became of the candidate; None where another one was promoted first.
    """
    name, verdict = work.preference_set, decided.verdict
    if set_state(home, name, work.model).undecided != work.snapshot:
        return f"snapshot {work.snapshot} was decided by another run"
    if verdict.verdict == "promote":
        verified_model(Path(artifacts["merge"]))
        try:
            made = promote(
                home,
                work.model,
                expected=decided.opponent,
                digest=digest,
                artifacts=artifacts,
                reason="; ".join(verdict.reasons),
                name=name,
                snapshot=work.snapshot,
            )
        except PromotionRace as race:
            driver.log.warning("%s", race)
            return None
        text = f"promoted: generation {made.generation} of {work.model}"
    else:
        kept = verdict.model_dump_json()
        release(home, work.snapshot, RELEASED[verdict.verdict], name=name, reason=kept)
        text = f"{verdict.verdict}: {verdict.reasons[0]}"
    driver.forget_approval(home, name, work.snapshot)
    driver.log.info("%s", text)
    faultpoint("retrain.settled")
    return text


def project(run: RetrainRun) -> None:
    """Moves the aliases to what the ledger says now.

    An inconclusive candidate stays named, for the person who has to look at it.
    """
    passed = run.notes.candidate_version if run.notes.verdict != "inconclusive" else None
    run.driver.patiently("project", move_aliases, run.home, run.work.model, passed, run.driver)


def move_aliases(home: Path, model: str, dropped: str | None, driver: Driver) -> None:
    """The registry follows the ledger; a registry that is away is repaired by the next run.

    Args:
        home: Absolute home.
        model: Registered name.
        dropped: Version that is the candidate no more; None leaves the alias.
        driver: Where it is said.
    """
    if dropped is not None:
        drop_candidate(home, model, dropped)
    _tell(reconcile(home, model), driver)


def repair(home: Path, model: str, driver: Driver) -> None:
    """Repairs the alias after a crash. A registry that is away does not keep a retrain from training."""
    driver.once("reconcile", _reconcile, home, model, driver)


def _reconcile(home: Path, model: str, driver: Driver) -> None:
    try:
        _tell(reconcile(home, model), driver)
    except AlignflowError:
        raise
    except Exception as error:  # MLflow's and its transport's are many
        driver.log.warning("the registry could not be looked at: %s", str(error)[:500])


def _tell(repaired: Reconciled, driver: Driver) -> None:
    """Says what was repaired; an alias that was moved by hand is shown on the run's page."""
    if repaired.by_hand:
        driver.log.error("%s", repaired.text)
        driver.show(repaired.text, "alias-moved-by-hand", "The registry and the ledger differed.")
    else:
        driver.log.info("%s", repaired.text)
