"""A merged model in MLflow's registry: every file verified, its certificate passed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignflow.errors import RecipeError
from alignflow.merging import require_certificate
from alignflow.stages import MODEL, Artifact, verify
from alignflow.tracking.connection import registry_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


UNJUDGED = {"verdict": "none", "reason": "no gate has judged it", "generation": "none"}
"""Tags of a version about which nothing was decided."""


def model_digest(merge: Artifact) -> str:
    """Names a merged model: sha256 over its files."""
    return merge.digest((MODEL,))


def new_version(
    client: MlflowClient, name: str, merge: Artifact, run_id: str | None, *, copy: bool
) -> str:
    """Registers a merged model, every file of it verified against the manifest. Its version.

    A name that is new is made. The version names the run; with `copy` it is registered from a copy
    in the run's artifacts instead of from the model's directory.

    Raises:
        ArtifactError: A file is missing, added or changed.
        CertificateError: There is no certificate that passed.
    """
    from mlflow.exceptions import MlflowException

    verify(merge.directory)
    model = merge.directory / MODEL
    require_certificate(model)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = model.as_uri()
    if copy:
        assert run_id is not None, "a copy stands in a run"
        client.log_artifacts(run_id, str(model), MODEL)
        source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL}"
    tags = {"model_digest": model_digest(merge), "stage_key": merge.key, **UNJUDGED}
    version = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
    return str(version.version)


def version_named(uri: str, name: str, alias: str | None, version: str | None) -> ModelVersion:
    """The version of a registered model that an alias or a number stands for.

    Raises:
        RecipeError: The registry knows no such model, alias or version.
    """
    client = registry_client(uri)
    from mlflow.exceptions import MlflowException

    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        known = ", ".join(sorted(one.name for one in client.search_registered_models())) or "none"
        named = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"
        raise RecipeError(f"{named}: {error.message} ({uri} knows the models {known}).") from error
