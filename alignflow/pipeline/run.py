"""One run of a recipe: its stages in order, who watches them, and the report however it ends."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alignflow.checking import preflight
from alignflow.errors import AlignflowError
from alignflow.files import held
from alignflow.machine import named_faults
from alignflow.merging import require_certificate
from alignflow.pipeline.driver import IN_PROCESS, Driver
from alignflow.pipeline.note import run_note
from alignflow.pipeline.plan import stage_spec
from alignflow.pipeline.progress import observed_by, shown_on, tell
from alignflow.pipeline.report import Report, build_report, report_file, write_report
from alignflow.pipeline.terminal import plain_console
from alignflow.recipe import PPOSection, Recipe, require_training
from alignflow.settings import resolve_home
from alignflow.stages import (
    EVENTS_FILE,
    Artifact,
    StageOutcome,
    StageSpec,
    find,
    forkserver,
    next_attempt,
    read_events,
    work_directory,
)
from alignflow.tracking import Tracker, mlflow_run_of
from alignflow.training import weakness

AnyRun = TypeVar("AnyRun", bound="PipelineRun")


class PipelineRun:
    """One run of a recipe: its artifacts so far and what became of each stage."""

    def __init__(
        self, recipe: Recipe, home: Path, run_id: str, driver: Driver, title: str | None = None
    ) -> None:
        self.title = title or run_id
        """What it is called in MLflow and Prefect."""
        self.recipe = recipe
        self.home = home
        self.run_id = run_id
        self.driver = driver
        self.artifacts: dict[str, Artifact] = {}
        self.judged_beside: dict[str, Artifact] = {}
        """Evaluations of other models than the run's own, by what these are to it."""
        self.outcomes: dict[str, StageOutcome] = {}
        self.report: Report
        """Once the run is closed."""
        self.note: str
        """What it came to and where it is seen, in Markdown; once the run is closed."""
        self._page = dict(driver.page() or {})
        self.tracker = Tracker(recipe, home, run_id, self.title, self._links())
        self.status_if_left = "cancelled"
        self._planned = list(recipe.stages)
        self._started = time.monotonic()
        self._busy_seconds = 0.0
        driver.named(self.title)

    def _links(self) -> dict[str, str]:
        """Where else the run is seen, for its tags in MLflow."""
        seen = self._page.get("url") or self._page.get("flow_run")
        report = str(report_file(self.home, self.run_id).with_suffix(".html"))
        return {"report": report, **({"prefect.flow_run": seen} if seen else {})}

    def in_force(self, stage: str) -> str:
        """`stage`, or what takes its place: the fallback where a reward model is too weak for PPO."""
        ppo, judge = self.recipe.settings(PPOSection), self.artifacts.get("reward")
        if stage != "ppo" or ppo is None or judge is None or self.recipe.fallback is None:
            return stage
        reason = weakness(judge.result, ppo)
        if reason is None:
            return stage
        self.recipe = self.recipe.falling_back
        method = self.recipe.method
        self._planned.insert(self._planned.index(stage) + 1, method)
        text = f"{reason} ppo.on_weak_reward is {method}, so {method} takes PPO's place."
        self.driver.log().warning("%s", text)
        self._ended(StageOutcome(stage=stage, state="skipped", error=text))
        return method

    def complete(self, stage: str) -> None:
        """Has `stage` done, or finds it done.

        Raises:
            AlignflowError: It failed for good.
            CertificateError: A merged model has no certificate that passed.
        """
        started = time.monotonic()
        spec = None
        try:
            with named_faults(f"under {self.home}"):
                spec = self.spec_of(stage)
                artifact, outcome = self._made(spec, started)
            if stage == "merge":
                require_certificate(artifact.directory / "model")
        except BaseException as error:
            self._ended(_failed(stage, spec, error, time.monotonic() - started))
            raise
        self.artifacts[stage] = artifact
        self._ended(outcome)

    def spec_of(self, stage: str) -> StageSpec:
        """What `stage` has to do."""
        return stage_spec(self.recipe, stage, self.home, self.artifacts)

    def aside(self, spec: StageSpec, whose: str = "") -> Artifact:
        """Has a stage done that is about another model than the run's, such as the `champion`."""
        artifact, made = self._made(spec, time.monotonic(), whose)
        outcome = made.model_copy(update={"aside": True})
        tell(lambda observer: observer.stage_ended(outcome))
        return artifact

    def _made(
        self, spec: StageSpec, started: float, whose: str = ""
    ) -> tuple[Artifact, StageOutcome]:
        tell(lambda observer: observer.stage_started(spec))
        work = work_directory(self.home, spec.stage, spec.key)

        def say_so() -> None:
            text = "another run of this home is at it; this one waits for what it makes"
            self.driver.log().info("%s: %s", spec.stage, text)
            event = {"kind": "message", "level": "warning", "text": text}
            tell(lambda observer: observer.stage_event(spec, event))

        with held(work.with_name(f"{work.name}.lock"), say_so):
            finished = find(self.home, spec.stage, spec.key)
            if finished is None:
                forkserver.ensure()  # imports overlap `prepare`; a run that is all cached needs none
            began = time.monotonic()
            try:
                artifact, cached = self.driver.complete_stage(
                    spec, self.recipe.compute, finished, whose
                )
            finally:
                self._busy_seconds += 0.0 if finished else time.monotonic() - began
        return artifact, StageOutcome(
            stage=artifact.stage,
            key=artifact.key,
            state="cached" if cached else "completed",
            seconds=time.monotonic() - started,
            attempts=artifact.attempts,
            artifact=artifact.directory,
            result=artifact.result,
        )

    def _ended(self, outcome: StageOutcome) -> None:
        self.outcomes[outcome.stage] = outcome
        tell(lambda observer: observer.stage_ended(outcome))

    def additions(self) -> dict[str, Any]:
        """What the report has beside the stages."""
        return {}

    def close(self, status: str) -> None:
        """Builds and writes the report and hands it to MLflow."""
        tracker = self.tracker
        tracker.drain()
        stages = []
        for stage in self._planned:
            outcome = self.outcomes.get(stage) or StageOutcome(stage=stage, state="skipped")
            recorded = mlflow_run_of(self.home, stage, outcome.key) if outcome.key else None
            stages.append(outcome.model_copy(update={"mlflow_run_id": recorded}))
        built = build_report(
            recipe=self.recipe,
            run_id=self.run_id,
            status=status,
            seconds=time.monotonic() - self._started,
            stages=stages,
            mlflow=tracker.place(),
            beside=self.judged_beside,
            busy_seconds=self._busy_seconds,
        )
        if self._page:
            built["prefect"] = self._page
        self.report = Report(built | self.additions())
        with named_faults(f"under {self.home}"):
            folder = write_report(self.home, self.report, self.recipe)
        self.note = run_note(self.report, folder / "report.html")
        tracker.finish(status, self.report, folder, title=self.title, note=self.note)
        self.driver.show(self.note, "outcome", "What the run came to, and where it is seen.")
        for name, what in (("url", "MLflow run"), ("table", "MLflow table")):
            if address := self.report.mlflow.get(name):
                self.driver.link(address, what)


def _failed(
    stage: str, spec: StageSpec | None, error: BaseException, seconds: float
) -> StageOutcome:
    events = work_directory(Path(spec.home), stage, spec.key) / EVENTS_FILE if spec else None
    return StageOutcome(
        stage=stage,
        key=spec.key if spec else None,
        state="failed",
        seconds=seconds,
        attempts=next_attempt(read_events(events)) - 1 if events else 0,
        error=str(error) if isinstance(error, Exception) else "cancelled",
        exit_code=error.exit_code if isinstance(error, AlignflowError) else 70,
    )


@contextmanager
def watched(run: AnyRun) -> Iterator[AnyRun]:
    """`run`, seen by MLflow; its report is written however the block ends."""
    status = None
    with forkserver.ended_after(), run.tracker, observed_by(run.tracker):
        try:
            yield run
            status = "completed"
        except Exception:
            status = "failed"
            raise
        finally:
            run.close(status or run.status_if_left)


def new_run_id(name: str) -> str:
    """`name-20261125-175900-1a2b`: sorted by time, and unique."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def run(
    recipe: Recipe,
    *,
    home: Path | str | None = None,
    run_id: str | None = None,
    progress: bool = True,
) -> Report:
    """Prepares data, fine-tunes, aligns, evaluates and merges as a recipe says, in this process.

    What was done before, here or by `alignflow run`, is not done again. A stage that may succeed at
    another attempt is tried again as `compute.retries` says. MLflow has the run; Prefect does not.
    A run that fails or is interrupted leaves its report too, for `load_report`.

    Args:
        recipe: From `load_recipe`.
        home: Directory of all results; None is ALIGNFLOW_HOME or `.alignflow`.
        run_id: Names the report; None makes one of the recipe's name and the time.
        progress: Show a bar per stage on stderr or in the notebook.

    Raises:
        AlignflowError: The recipe is refused, or a stage failed for good.
    """
    require_training(recipe)
    place = resolve_home(home)
    preflight(recipe, recipe.name, place)
    this = PipelineRun(recipe, place, run_id or new_run_id(recipe.name), IN_PROCESS)
    with shown_on(plain_console(stderr=True) if progress else None), watched(this):
        for stage in recipe.stages:
            this.complete(this.in_force(stage))
    return this.report
