"""Where MLflow is, and a client of it. MLflow is imported when a client is first needed."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from alignflow.settings import Settings, without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
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
        known = client.get_experiment_by_name(self.experiment)
        location = None if is_server(self.uri) else self._artifact_root.as_uri()
        self.experiment_id = (
            known.experiment_id if known else client.create_experiment(self.experiment, location)
        )
        return client

    def new_run(self, name: str, tags: dict[str, str]) -> str:
        """Id of a run that is made."""
        return self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
