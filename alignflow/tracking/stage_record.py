"""What MLflow holds of one stage key: its run, noted beside the sealed artifact."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.files import atomic_write_json
from alignflow.recipe import Recipe, TuningSection, is_ledger
from alignflow.settings import without_password
from alignflow.stages import (
    ADAPTER,
    EVENTS_FILE,
    Artifact,
    StageSpec,
    artifact_directory,
    library_versions,
    metric_history,
    read_events,
)
from alignflow.tracking.connection import Connection, is_server, tracking_uri
from alignflow.tracking.registration import new_version
from alignflow.tracking.run_log import RunLog, flattened


def sidecar(home: Path, stage: str, key: str) -> Path:
    """Where a stage key's MLflow run is noted: beside the artifact, which is sealed."""
    directory = artifact_directory(home, stage, key)
    return directory.with_name(f"{directory.name}.mlflow.json")


def mlflow_run_of(home: Path, stage: str, key: str) -> str | None:
    """Id of the MLflow run that recorded a stage key, on the tracking server in force."""
    return _read_note(home, stage, key).get("run_id")


class StageRecord(NamedTuple):
    """What MLflow holds of one stage key."""

    connection: Connection
    recipe: Recipe
    home: Path
    parent_id: str

    def open(self, spec: StageSpec) -> RunLog:
        """The stage key's run, continued if an earlier attempt made it and nobody deleted it."""
        parent = {"mlflow.parentRunId": self.parent_id}
        note = _read_note(self.home, spec.stage, spec.key)
        if not note or self.connection.state_of(note["run_id"]) != "active":
            tags = {"stage": spec.stage, "stage_key": spec.key, **parent}
            note = self._note(spec, self.connection.new_run(spec.stage, tags), done=False)
        log = RunLog(self.connection, note["run_id"])
        log.tags(parent)
        log.params(_params(spec))
        return log

    def _note(self, spec: StageSpec, run_id: str, *, done: bool) -> dict[str, Any]:
        note = {"tracking_uri": self.connection.shown, "run_id": run_id, "done": done}
        atomic_write_json(sidecar(self.home, spec.stage, spec.key), note)
        return note

    def complete(self, artifact: Artifact) -> str:
        """Everything of a finished stage; once. Returns the run's id."""
        spec = artifact.spec
        note = _read_note(self.home, spec.stage, spec.key)
        if note.get("done") and self.connection.state_of(note["run_id"]) is not None:
            return note["run_id"]
        log = self.open(spec)
        log.params(artifact.result.params)
        history = metric_history(read_events(artifact.directory / EVENTS_FILE))
        log.metrics(history)
        last = max((step for steps in history.values() for step in steps), default=0)
        log.figures(artifact.result.metrics, "final_", last)
        log.tags({"attempts": artifact.attempts, "artifact": artifact.path})
        self._data(log, artifact)
        self._upload(log, artifact)
        log.end("completed")
        self._note(spec, log.run_id, done=True)
        return log.run_id

    def _data(self, log: RunLog, artifact: Artifact) -> None:
        sources = artifact.spec.params.get("sources", {})
        for name, digest in sources.items():
            path = artifact.spec.paths.get(name)
            rows = None
            if is_ledger(name) and path:
                from alignflow.ledger import described

                with suppress(FileNotFoundError):  # of rows that waited, and were dropped since
                    digest, rows = described(Path(path))
            log.data(name[:500], str(digest), path or name, "source", rows)
        if data := artifact.spec.inputs.get("data"):
            log.data("prepared", data.digest, data.path, "training")

    def _upload(self, log: RunLog, artifact: Artifact) -> None:
        adapter = artifact.directory / ADAPTER
        if self.recipe.tracking.upload != "reference" and adapter.exists():
            log.files(adapter, ADAPTER)
        if artifact.stage == "merge":
            self._register(log, artifact)

    def _register(self, log: RunLog, merge: Artifact) -> None:
        """Registers the merged model from its directory, without an alias."""
        name = self.recipe.registered_model
        copy = self.recipe.tracking.upload == "merged" or is_server(self.connection.uri)
        version = new_version(self.connection.client, name, merge, log.run_id, copy=copy)
        log.tags({"registered_model": name, "registered_version": version})


def _read_note(home: Path, stage: str, key: str) -> dict[str, Any]:
    try:
        note = json.loads(sidecar(home, stage, key).read_text())
    except (OSError, ValueError):
        return {}
    return note if note.get("tracking_uri") == without_password(tracking_uri(home)) else {}


def _params(spec: StageSpec) -> dict[str, Any]:
    """MLflow params of a stage: its section's hyper-parameters, tuning, parents, versions."""
    tuning, dtype = spec.params.get("tuning"), spec.params.get("dtype")
    return {
        "seed": spec.seed,
        **flattened(spec.section),
        **(TuningSection.model_validate(tuning).logged() if tuning else {}),
        **({"dtype": dtype} if dtype else {}),
        **{f"parent_{role}_digest": ref.digest for role, ref in spec.inputs.items()},
        **{f"version_{name}": number for name, number in library_versions().items()},
    }
