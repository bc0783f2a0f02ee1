"""The observer that keeps MLflow informed of a pipeline: one run, and one nested per stage key.

Everything is sent from one thread, so that neither MLflow's import nor a server that is down holds
up a stage. `events.jsonl` is the spool: what could not be sent is sent at the end of the stage, of
the run, or by a later run that finds the stage cached; (metric, step) pairs are sent once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from alignflow.errors import AlignflowError, CertificateError, DiskSpaceError
from alignflow.files import digest_json
from alignflow.machine import fault_of
from alignflow.recipe import Recipe
from alignflow.stages import (
    WITHOUT_ANSWERS,
    Artifact,
    StageOutcome,
    StageSpec,
    library_versions,
    read_manifest,
)
from alignflow.tracking.connection import Connection, tracking_uri
from alignflow.tracking.run_log import RunLog, flattened
from alignflow.tracking.stage_record import StageRecord

LIVE_SECONDS = 2.0
AWAY_SECONDS = 30.0
DRAIN_SECONDS = 120.0
REPEATED_PARAMS = (
    "lora_target_modules_resolved",
    "trainable_params",
    "total_params",
    "trainable_percent",
)
"""Params of a stage that its pipeline's run shows too."""

logger = logging.getLogger(__name__)


class Tracker:
    """Observes a pipeline and keeps MLflow informed, from its own thread."""

    def __init__(
        self,
        recipe: Recipe,
        home: Path,
        run_id: str,
        title: str | None = None,
        links: Mapping[str, str] | None = None,
    ) -> None:
        self._recipe = recipe
        self._home = home
        self._title = title or run_id
        self._tags = {"run_id": run_id, "recipe": recipe.name, **(links or {})}
        self._connection = Connection(
            tracking_uri(home), recipe.tracking.experiment or recipe.name, home / "mlartifacts"
        )
        self._jobs: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._parent: RunLog | None = None
        self._live: dict[str, RunLog] = {}
        self._waiting: dict[str, dict[str, dict[int, float]]] = {}
        self._sent_at = 0.0
        self._away_until = 0.0
        self._problem = ""
        self._unsent: dict[str, Artifact] = {}
        self._aside: set[str] = set()
        """Keys of what is about another model than the run's."""

    # -- the flow's side

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._jobs.put(self._opened)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._jobs.put(None)
        self._thread.join(DRAIN_SECONDS)

    def stage_started(self, spec: StageSpec) -> None:
        """Nothing: a stage that turns out to be cached makes no run."""

    def stage_event(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        """Queues what concerns MLflow."""
        if event["kind"] == "started":
            self._jobs.put(lambda: self._begin(spec, event["attempt"]))
        elif event["kind"] == "metrics":
            self._jobs.put(lambda: self._metrics(spec, event))

    def stage_ended(self, outcome: StageOutcome) -> None:
        """Queues the end of a stage."""
        if outcome.artifact is not None:
            artifact = read_manifest(outcome.artifact)
            self._jobs.put(lambda: self._complete(artifact, aside=outcome.aside))
        elif outcome.key is not None:
            self._jobs.put(lambda: self._failed(outcome))

    def drain(self) -> None:
        """Waits until all that is queued was sent, or could not be."""
        self._await(self._send_once_more)

    def nested(
        self, name: str, params: Mapping[str, Any], figures: Mapping[str, float | None]
    ) -> None:
        """Queues a finished run of its own under this one."""
        self._jobs.put(lambda: self._nested(name, params, figures))

    def finish(
        self, status: str, report: Mapping[str, Any], folder: Path, *, title: str, note: str
    ) -> None:
        """Puts the final figures, the report and a description into the parent run and closes it."""
        self._await(lambda: self._close_parent(status, report, folder, title, note))

    def _await(self, job: Callable[[], None]) -> None:
        done = threading.Event()
        self._jobs.put(job)
        self._jobs.put(done.set)
        done.wait(DRAIN_SECONDS)

    def place(self) -> dict[str, Any]:
        """Where the parent run is, for the report, and what it lacks; run_id is None while MLflow is away."""
        place = {
            "tracking_uri": self._connection.shown,
            "experiment": self._connection.experiment,
            "run_id": self._parent.run_id if self._parent else None,
            "url": self._connection.run_page(self._parent.run_id) if self._parent else None,
            "table": self._connection.table_page() if self._parent else None,
        }
        if self._parent is None or self._unsent:
            missing = ", ".join(artifact.stage for artifact in self._unsent.values())
            what = f"not recorded yet: {missing}" if self._parent else "nothing is recorded"
            place["problem"] = f"{what} ({self._problem or 'no answer yet'}); a later run sends it"
        return place

    # -- the thread's side

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except AlignflowError as error:
                logger.warning("%s", error)
            except Exception as error:
                self._away(error)

    def _away(self, error: Exception) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        self._live.clear()
        first = not self._problem
        fault = fault_of(error, self._connection.shown)
        said = fault.message if isinstance(fault, DiskSpaceError) else str(error)
        self._problem = said.splitlines()[0][:300] if said else type(error).__name__
        if first:
            logger.warning(
                "MLflow at %s is away (%s). The run goes on; its events are kept and sent later.",
                self._connection.shown,
                self._problem,
            )

    @property
    def _is_away(self) -> bool:
        return time.monotonic() < self._away_until

    @property
    def _is_gone(self) -> bool:
        """Away, and never seen in this run: the end of the run does not wait for it."""
        return self._is_away and self._parent is None

    def _opened(self) -> RunLog:
        """The parent run, made on first use."""
        if self._parent is None:
            run_id = self._connection.new_run(self._title, self._tags)
            self._parent = RunLog(self._connection, run_id)
            self._parent.params(self._recipe_params())
            self._connection.share_columns()
        return self._parent

    def _recipe_params(self) -> dict[str, Any]:
        dump = self._recipe.model_dump(mode="json", exclude={"data", "tracking"})
        return {
            "recipe_digest": digest_json(self._recipe.model_dump(mode="json")),
            **self._recipe.tuning.logged(),
            **flattened(dump),
            **{f"version_{name}": number for name, number in library_versions().items()},
        }

    def _record(self) -> StageRecord:
        return StageRecord(self._connection, self._recipe, self._home, self._opened().run_id)

    def _begin(self, spec: StageSpec, attempt: int) -> None:
        if self._is_away:
            return
        self._live[spec.key] = log = self._record().open(spec)
        log.tags({"attempts": attempt})

    def _metrics(self, spec: StageSpec, event: Mapping[str, Any]) -> None:
        waiting = self._waiting.setdefault(spec.key, {})
        for name, value in event["values"].items():
            waiting.setdefault(name, {})[event["step"]] = value
        if spec.key in self._live and time.monotonic() - self._sent_at > LIVE_SECONDS:
            self._sent_at = time.monotonic()
            self._live[spec.key].metrics(self._waiting.pop(spec.key))

    def _complete(self, artifact: Artifact, *, aside: bool) -> None:
        self._waiting.pop(artifact.key, None)
        (self._aside.add if aside else self._aside.discard)(artifact.key)
        self._unsent[artifact.key] = artifact
        if not self._is_away:
            self._send_unsent()

    def _send_once_more(self) -> None:
        if not self._is_gone:
            self._send_unsent()

    def _send_unsent(self) -> None:
        for key, artifact in list(self._unsent.items()):
            try:
                run_id = self._record().complete(artifact)
            except CertificateError:
                del self._unsent[key]
                raise
            if key not in self._aside:
                self._link(artifact, run_id)
            del self._unsent[key]
        self._away_until = 0.0

    def _link(self, artifact: Artifact, run_id: str) -> None:
        """The parent names each stage's run and repeats its final figures and params."""
        parent, params = self._opened(), artifact.result.params
        parent.tags({f"stage_run.{artifact.stage}": run_id})
        if artifact.stage != "reward":
            parent.params({name: params[name] for name in REPEATED_PARAMS if name in params})
        parent.figures(artifact.result.metrics, f"{artifact.stage}.")

    def _failed(self, outcome: StageOutcome) -> None:
        log = self._live.pop(outcome.key or "", None)
        if log is None or self._is_away:
            return
        log.metrics(self._waiting.pop(outcome.key or "", {}))
        log.tags({"attempts": outcome.attempts, "error": outcome.error or ""})
        log.end("cancelled" if outcome.error == "cancelled" else "failed")

    def _nested(
        self, name: str, params: Mapping[str, Any], figures: Mapping[str, float | None]
    ) -> None:
        if self._is_away:
            return
        parent = self._opened()
        tags = {"mlflow.parentRunId": parent.run_id}
        log = RunLog(self._connection, self._connection.new_run(name, tags))
        log.params(params)
        log.figures(figures, "")
        log.end("completed")

    def _close_parent(
        self, status: str, report: Mapping[str, Any], folder: Path, title: str, note: str
    ) -> None:
        if self._is_gone:
            return
        parent = self._opened()
        for model, metrics in (report.get("evaluation") or {}).items():
            parent.figures(metrics, f"{model}.")
        parent.tags({"status": status, **_retrain_tags(report.get("retrain") or {})})
        parent.tags({"mlflow.note.content": note})
        parent.rename(title)
        for place in (folder / "report.json", folder / WITHOUT_ANSWERS):
            parent.files(place)
        parent.end(status)


def _retrain_tags(retrain: Mapping[str, Any]) -> dict[str, Any]:
    names = ("snapshot", "verdict", "outcome", "champion", "generation")
    return {f"retrain.{name}": retrain[name] for name in names if retrain.get(name) is not None}
