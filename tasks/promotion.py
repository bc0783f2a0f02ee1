"""The lineage's beginning, the verdict in the ledger, and the registry after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from alignflow.errors import AlignflowError
from alignflow.faults import faultpoint
from alignflow.gate import Verdict
from alignflow.ledger import PromotionRace, champion, promote, release, set_state
from alignflow.lineage.registry import (
    Reconciled,
    drop_candidate,
    reconcile,
    register_candidate,
    verified_model,
)
from alignflow.lineage.retraining import ORIGINAL_STAGES, Champion, founder_spec, model_artifacts
from alignflow.stages.artifacts import verify
from alignflow.tracking import model_digest
from tasks.approval import forget_approval
from tasks.events import send_pending
from tasks.patience import patient
from tasks.prefect_artifacts import show_markdown
from tasks.retraining import Plan, RetrainRun

RELEASED = {"reject": "rejected", "inconclusive": "inconclusive"}


def found_lineage(run: RetrainRun) -> None:
    """Makes the SFT model (else the base) generation 0, where the name has no champion yet.

    It is served from now on: the gate and a person may take their time.
    """
    if champion(run.home, run.plan.model) is not None:
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
    found(run.home, run.plan.model, Champion(generation=0, digest=digest, artifacts=made))
    run.tracker.drain()  # else the tracker and `repair` both register the model
    repair(run.home, run.plan.model)
    send_pending(run.home)


@task(name="found-lineage", task_run_name="found-lineage", cache_policy=NO_CACHE)
def found(home: Path, model: str, founder: Champion) -> None:
    """Promotes generation 0. It is what there was before: nothing is claimed of it."""
    if "merge" in founder.artifacts:
        verified_model(Path(founder.artifacts["merge"]))
    what = "the SFT model" if "sft" in founder.artifacts else "the base model"
    reason = f"generation 0: {what}, which the first candidate has to beat"
    try:
        promote(
            home, model, expected=None, digest=founder.digest,
            artifacts=founder.artifacts, reason=reason,
        )  # fmt: skip
    except PromotionRace:
        get_run_logger().info("another run has founded the lineage of %s", model)
    faultpoint("retrain.founded")


def registered(run: RetrainRun) -> None:
    """Has the candidate in the registry, every file verified, before it is gated."""
    run.tracker.drain()
    merge = run.artifacts["merge"].path
    run.note(candidate_version=register(run.home, run.plan.model, merge, run.plan.snapshot))


@task(**patient("register"))
def register(home: Path, model: str, merge: str, snapshot: str) -> str:
    """The candidate's version. Without the registry nothing is promoted: the snapshot waits."""
    return register_candidate(home, model, verify(Path(merge)), snapshot=snapshot)


def settled(run: RetrainRun, verdict: Verdict) -> bool:
    """Puts the verdict into the ledger; False where the champion has changed and the gate is due again."""
    text = settle(
        run.home, run.plan, run.opponent, verdict, model_digest(run.artifacts["merge"]),
        model_artifacts(run.artifacts, run.plan.start),
    )  # fmt: skip
    if text is None:
        return False
    head = champion(run.home, run.plan.model)
    own = head is not None and head.snapshot == run.plan.snapshot
    run.note(outcome=text, generation=head.generation if head and own else None)
    return True


@task(name="settle", task_run_name="settle", cache_policy=NO_CACHE)
def settle(
    home: Path,
    plan: Plan,
    opponent: int,
    verdict: Verdict,
    digest: str,
    artifacts: dict[str, str],
) -> str | None:
    """One transaction: the champion moves and the rows are consumed, or the rows are given back.

    Args:
        home: Absolute home.
        plan: What the run is about.
        opponent: Generation that the candidate was gated against.
        verdict: The gate's and, where asked, a person's.
        digest: Of the candidate's merged model.
        artifacts: Of the candidate, for the ledger.

    Returns:
        What became of the candidate; None where another one was promoted first.
    """
    name, log = plan.preference_set, get_run_logger()
    if set_state(home, name, plan.model).undecided != plan.snapshot:
        return f"snapshot {plan.snapshot} was decided by another run"
    if verdict.verdict == "promote":
        verified_model(Path(artifacts["merge"]))
        try:
            made = promote(
                home, plan.model, expected=opponent, digest=digest, artifacts=artifacts,
                reason="; ".join(verdict.reasons), name=name, snapshot=plan.snapshot,
            )  # fmt: skip
        except PromotionRace as race:
            log.warning("%s", race)
            return None
        text = f"promoted: generation {made.generation} of {plan.model}"
    else:
        kept = verdict.model_dump_json()
        release(home, plan.snapshot, RELEASED[verdict.verdict], name=name, reason=kept)  # pyright: ignore[reportArgumentType]
        text = f"{verdict.verdict}: {verdict.reasons[0]}"
    forget_approval(home, name, plan.snapshot)
    log.info("%s", text)
    faultpoint("retrain.settled")
    return text


def projected(run: RetrainRun) -> None:
    """Moves the aliases to what the ledger says now."""
    project(run.home, run.plan.model, run.notes["retrain"]["candidate_version"], _keeps_alias(run))


def _keeps_alias(run: RetrainRun) -> bool:
    """An inconclusive candidate stays named, for the person who has to look at it."""
    return run.notes["retrain"]["verdict"] == "inconclusive"


@task(**patient("project"))
def project(home: Path, model: str, version: str, keep: bool) -> None:
    """The registry follows the ledger; a registry that is away is repaired by the next run."""
    if not keep:
        drop_candidate(home, model, version)
    tell(reconcile(home, model))


@task(name="reconcile", task_run_name="reconcile", cache_policy=NO_CACHE)
def repair(home: Path, model: str) -> None:
    """Repairs the alias after a crash. A registry that is away does not keep a retrain from training."""
    try:
        tell(reconcile(home, model))
    except AlignflowError:
        raise
    except Exception as error:  # MLflow's and its transport's are many
        get_run_logger().warning("the registry could not be looked at: %s", str(error)[:500])


def tell(found: Reconciled) -> None:
    """Says what was repaired; an alias that was moved by hand is shown on the run's page."""
    log = get_run_logger()
    if found.by_hand:
        log.error("%s", found.text)
        show_markdown(found.text, "alias-moved-by-hand", "The registry and the ledger differed.")
    else:
        log.info("%s", found.text)


def ended(run: RetrainRun) -> State[dict[str, Any]]:
    """A Completed state that says what came out."""
    return Completed(message=run.notes["retrain"]["outcome"], data=run.report)


def nothing_to_do(plan: Plan) -> State[dict[str, Any]]:
    """A Completed state that says why nothing was trained."""
    get_run_logger().info("%s", plan.text)
    return Completed(message=plan.text, data={"status": "waiting", "text": plan.text})
