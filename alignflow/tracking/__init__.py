"""MLflow: runs, metrics, registered models. The only folder that imports it, and late.

Where a stage's run is stands beside its sealed artifact, in `<key>.mlflow.json`.
"""

from alignflow.tracking.connection import (
    Connection,
    import_mlflow,
    is_server,
    local_store,
    registry_client,
    tracking_uri,
)
from alignflow.tracking.registration import model_digest, new_version
from alignflow.tracking.stage_record import mlflow_run_of
from alignflow.tracking.tracker import Tracker

__all__ = [
    "Connection",
    "Tracker",
    "import_mlflow",
    "is_server",
    "local_store",
    "mlflow_run_of",
    "model_digest",
    "new_version",
    "registry_client",
    "tracking_uri",
]
