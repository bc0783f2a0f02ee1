"""MLflow: one run per pipeline and one nested per executed stage key. The only mlflow import.

Everything is sent from one thread, so that neither MLflow's import nor a server that is down holds
up a stage. `events.jsonl` is the spool: what could not be sent is sent at the end of the stage, of
the run, or by a later run that finds the stage cached; (metric, step) pairs are sent once.
Where a stage's run is stands beside its sealed artifact, in `<key>.mlflow.json`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from alignflow.errors import AlignflowError, CertificateError
from alignflow.files import atomic_write_json, digest_json
from alignflow.recipe import Recipe, TuningSection
from alignflow.recipe.names import is_ledger
from alignflow.settings import Settings, without_password
from alignflow.stages.artifacts import Artifact, artifact_directory, read_manifest, verify
from alignflow.stages.events import EVENTS_FILE, metric_history, read_events
from alignflow.stages.outcome import StageOutcome
from alignflow.stages.spec import StageSpec, library_versions

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CERTIFICATE_FILE = "merge_certificate.json"
LIVE_SECONDS = 2.0
AWAY_SECONDS = 30.0
DRAIN_SECONDS = 120.0
METRICS_PER_REQUEST = 500
PARAMS_PER_REQUEST = 100
QUIET = {"MLFLOW_LOGGING_LEVEL": "WARNING"}
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
STATUS = {
    "completed": "FINISHED",
    "cached": "FINISHED",
    "cancelled": "KILLED",
    "suspended": "KILLED",
}

logger = logging.getLogger(__name__)


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, else SQLite in the home."""
    return Settings().mlflow_tracking_uri or local_store(home)


def local_store(home: Path) -> str:
    """MLflow's SQLite database in the home."""
    return f"sqlite:///{home / 'mlflow.db'}"


def sidecar(home: Path, stage: str, key: str) -> Path:
    """Where a stage key's MLflow run is noted: beside the artifact, which is sealed."""
    directory = artifact_directory(home, stage, key)
    return directory.with_name(f"{directory.name}.mlflow.json")


def mlflow_run_of(home: Path, stage: str, key: str) -> str | None:
    """Id of the MLflow run that recorded a stage key, on the tracking server in force."""
    note = _read_note(home, stage, key)
    return note.get("run_id")


def _read_note(home: Path, stage: str, key: str) -> dict[str, Any]:
    try:
        note = json.loads(sidecar(home, stage, key).read_text())
    except (OSError, ValueError):
        return {}
    return note if note.get("tracking_uri") == without_password(tracking_uri(home)) else {}


def stage_params(spec: StageSpec) -> dict[str, Any]:
    """MLflow params of a stage: its section's hyper-parameters, tuning, parents, versions."""
    section = spec.params.get("section", {})
    tuning = spec.params.get("tuning")
    return {
        "seed": spec.seed,
        **_flat(section),
        **(TuningSection.model_validate(tuning).logged() if tuning else {}),
        **({"dtype": spec.params["dtype"]} if "dtype" in spec.params else {}),
        **{f"parent_{role}_digest": ref.digest for role, ref in spec.inputs.items()},
        **{f"version_{name}": number for name, number in library_versions().items()},
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}_")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def as_param(value: Any) -> str:
    """A param's text: lists sorted and joined, at most 6,000 characters."""
    if isinstance(value, list | tuple | set):
        value = ",".join(sorted(str(item) for item in value))
    return str(value)[:6000]


def require_certificate(model: Path) -> dict[str, Any]:
    """The merge certificate of a merged model.

    Raises:
        CertificateError: There is none, or it did not pass.
    """
    path = model / CERTIFICATE_FILE
    try:
        certificate = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"{path} is not there or damaged, so the merged model is not registered. "
            "Run the recipe again; the merge stage writes it."
        ) from error
    if certificate.get("status") != "passed":
        raise CertificateError(
            f"{path}: the certificate did not pass, so the merged model is not registered."
        )
    return certificate


def import_mlflow() -> None:
    """Imports MLflow, quiet and impatient; the 2 s may overlap a wait for something else."""
    for name, value in (IMPATIENT | QUIET).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    import mlflow.tracking  # noqa: F401


def model_digest(merge: Artifact) -> str:
    """Names a merged model: sha256 over its files."""
    return merge.digest(("model",))


def new_version(
    client: MlflowClient, name: str, merge: Artifact, run_id: str | None, *, copy: bool
) -> str:
    """Registers a merged model, every file of it verified against the manifest. Its version.

    Args:
        client: Of the registry.
        name: Registered name; made if it is new.
        merge: The artifact that holds the model.
        run_id: Run that the version names; it gets the copy.
        copy: Register from a copy in the run's artifacts instead of from the model's directory.

    Raises:
        ArtifactError: A file is missing, added or changed.
        CertificateError: There is no certificate that passed.
    """
    from mlflow.exceptions import MlflowException

    verify(merge.directory)
    model = merge.directory / "model"
    require_certificate(model)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = model.as_uri()
    if copy:
        assert run_id is not None, "a copy stands in a run"
        client.log_artifacts(run_id, str(model), "model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
    tags = {"model_digest": model_digest(merge), "stage_key": merge.key}
    version = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
    return str(version.version)


def is_server(uri: str) -> bool:
    """Whether MLflow is behind a server, which takes a model only out of its own artifact store."""
    return uri.startswith("http")


def registry_client(uri: str) -> MlflowClient:
    """A client of the tracking server and model registry; imports mlflow."""
    import_mlflow()
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class Connection:
    """A client with its experiment, made on first use and again after the server was away."""

    def __init__(self, uri: str, experiment: str, artifact_root: Path) -> None:
        self.uri = uri
        self.shown = without_password(uri)
        """The address without a password, for what is kept and read."""
        self.experiment = experiment
        self._artifact_root = artifact_root
        self._client: MlflowClient | None = None
        self.experiment_id = ""

    def client(self) -> MlflowClient:
        """The client; imports mlflow."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _connect(self) -> MlflowClient:
        client = registry_client(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            location = None if is_server(self.uri) else self._artifact_root.as_uri()
            self.experiment_id = client.create_experiment(self.experiment, location)
        else:
            self.experiment_id = found.experiment_id
        return client


class RunLog:
    """One MLflow run, written so that writing again changes nothing."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self._client = connection.client()
        self.run_id = run_id
        run = self._client.get_run(run_id)
        self._params = set(run.data.params)
        self._sent = {
            (name, metric.step)
            for name in run.data.metrics
            for metric in self._client.get_metric_history(run_id, name)
        }

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs params that the run does not have yet."""
        from mlflow.entities import Param

        new = [
            Param(name, as_param(value))
            for name, value in ((metric_name(key), value) for key, value in values.items())
            if name not in self._params and value is not None
        ]
        for start in range(0, len(new), PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_REQUEST])
        self._params |= {param.key for param in new}

    def metrics(self, history: Mapping[str, Mapping[int, float]]) -> None:
        """Logs the (metric, step) pairs that the run does not have yet."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(metric_name(name), float(value), now, step)
            for name, steps in history.items()
            for step, value in steps.items()
            if (metric_name(name), step) not in self._sent
        ]
        for start in range(0, len(new), METRICS_PER_REQUEST):
            part = new[start : start + METRICS_PER_REQUEST]
            self._client.log_batch(self.run_id, metrics=part)
            self._sent |= {(metric.key, metric.step) for metric in part}

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags."""
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, str(value))

    def data(
        self, name: str, digest: str, source: str, context: str, rows: int | None = None
    ) -> None:
        """Records a data set by its digest and, where it is known, its number of rows."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = None if rows is None else json.dumps({"num_rows": rows})
        entry = Dataset(name, digest[:36], "local", json.dumps({"uri": source}), profile=profile)
        self._client.log_inputs(
            self.run_id, [DatasetInput(entry, [InputTag("mlflow.data.context", context)])]
        )

    def files(self, path: Path, folder: str | None = None) -> None:
        """Copies a file or a directory to the artifact store."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        elif path.exists():
            self._client.log_artifact(self.run_id, str(path), folder)

    def end(self, status: str) -> None:
        """Closes the run."""
        self._client.set_terminated(self.run_id, STATUS.get(status, "FAILED"))


def metric_name(name: str) -> str:
    """`name` with what MLflow refuses replaced."""
    return "".join(
        character if character.isalnum() or character in "_-./ " else "_" for character in name
    )


class StageRecord:
    """What MLflow holds of one stage key."""

    def __init__(self, connection: Connection, recipe: Recipe, home: Path, parent_id: str) -> None:
        self._connection = connection
        self._recipe = recipe
        self._home = home
        self._parent_id = parent_id

    def open(self, spec: StageSpec) -> RunLog:
        """The stage key's run, continued if an earlier attempt made it."""
        client = self._connection.client()
        note = _read_note(self._home, spec.stage, spec.key)
        if not note:
            run = client.create_run(
                self._connection.experiment_id,
                run_name=spec.stage,
                tags={
                    "stage": spec.stage,
                    "stage_key": spec.key,
                    "mlflow.parentRunId": self._parent_id,
                },
            )
            note = {
                "tracking_uri": self._connection.shown,
                "run_id": run.info.run_id,
                "done": False,
            }
            self._note(spec, note)
        log = RunLog(self._connection, note["run_id"])
        log.tags({"mlflow.parentRunId": self._parent_id})
        log.params(stage_params(spec))
        return log

    def _note(self, spec: StageSpec, note: dict[str, Any]) -> None:
        atomic_write_json(sidecar(self._home, spec.stage, spec.key), note)

    def complete(self, artifact: Artifact) -> str:
        """Everything of a finished stage; once. Returns the run's id."""
        spec = artifact.spec
        note = _read_note(self._home, spec.stage, spec.key)
        if note.get("done"):
            return note["run_id"]
        log = self.open(spec)
        log.params(artifact.result.params)
        history = metric_history(read_events(artifact.directory / EVENTS_FILE))
        log.metrics(history)
        last = max((step for steps in history.values() for step in steps), default=0)
        log.metrics(
            {f"final_{name}": {last: value} for name, value in _numbers(artifact.result.metrics)}
        )
        log.tags({"attempts": artifact.attempts, "artifact": artifact.path})
        self._data(log, artifact)
        self._upload(log, artifact)
        log.end("completed")
        self._note(
            spec, {"tracking_uri": self._connection.shown, "run_id": log.run_id, "done": True}
        )
        return log.run_id

    def _data(self, log: RunLog, artifact: Artifact) -> None:
        sources = artifact.spec.params.get("sources", {})
        for name, digest in sources.items():
            path = artifact.spec.paths.get(name)
            rows = None
            if is_ledger(name) and path and Path(path).exists():
                from alignflow.ledger.snapshot_files import described

                digest, rows = described(Path(path))
            log.data(name[:500], str(digest), path or name, "source", rows)
        if data := artifact.spec.inputs.get("data"):
            log.data("prepared", data.digest, data.path, "training")

    def _upload(self, log: RunLog, artifact: Artifact) -> None:
        adapter = artifact.directory / "adapter"
        if self._recipe.tracking.upload != "reference" and adapter.exists():
            log.files(adapter, "adapter")
        if artifact.stage == "merge":
            self._register(log, artifact)

    def _register(self, log: RunLog, merge: Artifact) -> None:
        """Registers the merged model from its directory, without an alias."""
        name = self._recipe.registered_model
        copy = self._recipe.tracking.upload == "merged" or is_server(self._connection.uri)
        version = new_version(self._connection.client(), name, merge, log.run_id, copy=copy)
        log.tags({"registered_model": name, "registered_version": version})


def _retrain_tags(retrain: Mapping[str, Any]) -> dict[str, Any]:
    names = ("snapshot", "verdict", "outcome")
    return {f"retrain.{name}": retrain[name] for name in names if retrain.get(name) is not None}


def _numbers(metrics: Mapping[str, float | None]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in metrics.items() if value is not None]


class Tracker:
    """Observes a pipeline and keeps MLflow informed, from its own thread."""

    def __init__(self, recipe: Recipe, home: Path, run_id: str) -> None:
        self._recipe = recipe
        self._home = home
        self._run_id = run_id
        self._connection = Connection(
            tracking_uri(home), recipe.tracking.experiment or recipe.name, home / "mlartifacts"
        )
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._parent: RunLog | None = None
        self._live: dict[str, RunLog] = {}
        self._waiting: dict[str, dict[str, dict[int, float]]] = {}
        self._sent_at = 0.0
        self._away_until = 0.0
        self._told = False
        self._unsent: dict[str, Artifact] = {}
        self._linked: dict[str, str] = {}

    # -- the flow's side

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._jobs.put(self._open_parent)
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
            self._jobs.put(lambda: self._complete(artifact))
        elif outcome.key is not None:
            self._jobs.put(lambda: self._failed(outcome))

    def drain(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        """Waits until all that is queued was sent, or could not be."""
        done = threading.Event()
        self._jobs.put(self._send_once_more)
        self._jobs.put(done.set)
        done.wait(timeout_seconds)

    def finish(self, status: str, report: Mapping[str, Any], folder: Path) -> None:
        """Puts the final figures and the report into the parent run and closes it."""
        done = threading.Event()
        self._jobs.put(lambda: self._close_parent(status, report, folder))
        self._jobs.put(done.set)
        done.wait(DRAIN_SECONDS)

    def place(self) -> dict[str, Any]:
        """Where the parent run is, for the report; run_id is None while MLflow is away."""
        return {
            "tracking_uri": self._connection.shown,
            "experiment": self._connection.experiment,
            "run_id": self._parent.run_id if self._parent else None,
        }

    def address(self) -> str | None:
        """The parent run's page, where a server shows one."""
        if self._parent is None or not is_server(self._connection.uri):
            return None
        experiment = self._connection.experiment_id
        return f"{self._connection.shown}/#/experiments/{experiment}/runs/{self._parent.run_id}"

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
        if not self._told:
            self._told = True
            logger.warning(
                "MLflow at %s is away (%s). The run goes on; its events are kept and sent later.",
                self._connection.shown,
                str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
            )

    @property
    def _is_away(self) -> bool:
        return time.monotonic() < self._away_until

    @property
    def _is_gone(self) -> bool:
        """Away, and never seen in this run: the end of the run does not wait for it."""
        return self._is_away and self._parent is None

    def _open_parent(self) -> None:
        if self._parent is not None:
            return
        client = self._connection.client()
        run = client.create_run(
            self._connection.experiment_id,
            run_name=self._run_id,
            tags={"run_id": self._run_id, "recipe": self._recipe.name},
        )
        self._parent = RunLog(self._connection, run.info.run_id)
        self._parent.params(self._recipe_params())

    def _recipe_params(self) -> dict[str, Any]:
        dump = self._recipe.model_dump(mode="json", exclude={"data", "tracking"})
        return {
            "recipe_digest": digest_json(self._recipe.model_dump(mode="json")),
            **self._recipe.tuning.logged(),
            **_flat(dump),
            **{f"version_{name}": number for name, number in library_versions().items()},
        }

    def _record(self) -> StageRecord:
        self._open_parent()
        assert self._parent is not None
        return StageRecord(self._connection, self._recipe, self._home, self._parent.run_id)

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

    def _complete(self, artifact: Artifact) -> None:
        self._waiting.pop(artifact.key, None)
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
            self._link(artifact, run_id)
            del self._unsent[key]
        self._away_until = 0.0

    def _link(self, artifact: Artifact, run_id: str) -> None:
        """The parent names each stage's run and repeats its final figures and params.

        The first of a stage is the run's own; a later one judged or merged the champion.
        """
        assert self._parent is not None
        if self._linked.setdefault(artifact.stage, artifact.key) != artifact.key:
            return
        self._parent.tags({f"stage_run.{artifact.stage}": run_id})
        resolved = ("lora_target_modules_resolved", "trainable_params", "total_params")
        params = artifact.result.params
        if artifact.stage != "reward":
            self._parent.params(
                {name: params[name] for name in (*resolved, "trainable_percent") if name in params}
            )
        self._parent.metrics(
            {
                f"{artifact.stage}.{name}": {0: value}
                for name, value in _numbers(artifact.result.metrics)
            }
        )

    def _failed(self, outcome: StageOutcome) -> None:
        log = self._live.pop(outcome.key or "", None)
        if log is None or self._is_away:
            return
        log.metrics(self._waiting.pop(outcome.key or "", {}))
        log.tags({"attempts": outcome.attempts, "error": outcome.error or ""})
        log.end("cancelled" if outcome.error == "cancelled" else "failed")

    def _close_parent(self, status: str, report: Mapping[str, Any], folder: Path) -> None:
        if self._is_gone:
            return
        self._open_parent()
        assert self._parent is not None
        self._parent.metrics(
            {
                f"{model}.{name}": {0: value}
                for model, metrics in (report.get("evaluation") or {}).items()
                for name, value in _numbers(metrics)
            }
        )
        self._parent.tags({"status": status, **_retrain_tags(report.get("retrain") or {})})
        for name in ("report.json", "report.html"):
            self._parent.files(folder / name)
        self._parent.end(status)
