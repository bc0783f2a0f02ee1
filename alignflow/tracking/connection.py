"""Where MLflow is, and a client of it. MLflow is imported when a client is first needed."""

from __future__ import annotations

import json
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from alignflow.settings import Settings, without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Quiet and impatient; what the user has set stays."""


def tracking_uri(home: Path) -> str:
    """MLFLOW_TRACKING_URI, else SQLite in the home."""
    return Settings().mlflow_tracking_uri or local_store(home)


def local_store(home: Path) -> str:
    """MLflow's SQLite database in the home."""
    return f"sqlite:///{home / 'mlflow.db'}"


def import_mlflow() -> None:
    """Imports MLflow, quiet and impatient; the 2 s may overlap a wait for something else."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow.tracking  # noqa: F401


def is_server(uri: str) -> bool:
    """Whether MLflow is behind a server, which takes a model only out of its own artifact store."""
    return uri.startswith("http")


def registry_client(uri: str) -> MlflowClient:
    """A client of the tracking server and model registry; imports mlflow."""
    import_mlflow()
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, location: str | None = None) -> str:
    """Id of the experiment of a name: made if there is none, restored if somebody deleted it."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return client.create_experiment(name, location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = client.get_experiment_by_name(name)  # another run has made it in this moment
        assert known is not None
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
        logger.warning(
            "The MLflow experiment %r had been deleted, so nothing could be recorded in it. It is "
            "restored. Set tracking.experiment to record elsewhere.",
            name,
        )
    return known.experiment_id


VIEW = "alignflow"
COLUMNS = (
    *("tags.`retrain.verdict`", "tags.`retrain.generation`", "params.`method`"),
    *(f"metrics.`{model}.accuracy`" for model in ("base", "sft", "aligned", "merged")),
    *("metrics.`aligned.perplexity_general`", "params.`tuning_mode`", "params.`lora_rank`"),
    *("params.`lora_alpha`", "params.`lora_target_modules`", "params.`trainable_percent`"),
)
"""Columns of the experiment's page that `Connection.table_page` leads to, in MLflow's names."""


class Connection:
    """A client with its experiment, made on first use and again after the server was away."""

    def __init__(self, uri: str, experiment: str, artifact_root: Path) -> None:
        self.uri = uri
        self.shown = without_password(uri)
        """The address without a password, for what is kept and read."""
        self.experiment = experiment
        self._artifact_root = artifact_root
        self.experiment_id = ""

    @cached_property
    def client(self) -> MlflowClient:
        """The client; imports mlflow."""
        client = registry_client(self.uri)
        location = None if is_server(self.uri) else self._artifact_root.as_uri()
        self.experiment_id = experiment_id(client, self.experiment, location)
        return client

    def run_page(self, run_id: str) -> str | None:
        """Address of a run's page; None where no server shows one."""
        return self._page(f"runs/{run_id}")

    def table_page(self) -> str | None:
        """Address of the experiment's runs with `COLUMNS`; `share_columns` makes it lead there."""
        return self._page(f"runs?viewStateShareKey={VIEW}")

    def _page(self, path: str) -> str | None:
        pages = Settings().mlflow_ui_url or (self.shown if is_server(self.uri) else None)
        return f"{pages.rstrip('/')}/#/experiments/{self.experiment_id}/{path}" if pages else None

    def share_columns(self) -> None:
        """Keeps the view of `table_page` with the experiment, where MLflow's page looks for it."""
        tag, view = f"mlflow.sharedViewState.{VIEW}", json.dumps({"selectedColumns": COLUMNS})
        if self.client.get_experiment(self.experiment_id).tags.get(tag) != view:
            self.client.set_experiment_tag(self.experiment_id, tag, view)

    def state_of(self, run_id: str) -> str | None:
        """`active` or `deleted`; None where MLflow has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(run.info.lifecycle_stage)

    def new_run(self, name: str, tags: dict[str, str]) -> str:
        """Id of a run that is made."""
        return self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
