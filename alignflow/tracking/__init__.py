"""MLflow: runs, metrics, registered models. The only folder that imports it, and late.

Where a stage's run is stands beside its sealed artifact, in `<key>.mlflow.json`.
"""

from alignflow.tracking.connection import experiment_id as experiment_id
from alignflow.tracking.connection import import_mlflow as import_mlflow
from alignflow.tracking.connection import is_server as is_server
from alignflow.tracking.connection import local_store as local_store
from alignflow.tracking.connection import registry_client as registry_client
from alignflow.tracking.connection import tracking_uri as tracking_uri
from alignflow.tracking.registration import model_digest as model_digest
from alignflow.tracking.registration import new_version as new_version
from alignflow.tracking.registration import version_named as version_named
from alignflow.tracking.stage_record import mlflow_run_of as mlflow_run_of
from alignflow.tracking.tracker import Tracker as Tracker
