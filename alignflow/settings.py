"""What comes from the environment and not from a recipe: the home and the servers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment of one alignflow process. Secrets stay in the environment; none is read here."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True, extra="ignore", frozen=True)

    home: Path = Field(default=Path(".alignflow"), validation_alias="ALIGNFLOW_HOME")
    """Directory of artifacts, work in progress, ledger, MLflow's store and reports."""

    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    """MLflow server; None keeps runs in SQLite in the home."""

    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    """Prefect server; None starts a temporary one for the run."""


def resolve_home(home: Path | None) -> Path:
    """`home` as given, else ALIGNFLOW_HOME, else `.alignflow` here; absolute."""
    return (home or Settings().home).expanduser().absolute()
