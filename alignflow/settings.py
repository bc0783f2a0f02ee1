"""What comes from the environment and not from a recipe: the home and the servers."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Environment of one alignflow process. What may hold a password is masked when printed."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True, extra="ignore", frozen=True)

    home: Path = Field(default=Path(".alignflow"), validation_alias="ALIGNFLOW_HOME")
    """Directory of artifacts, work in progress, ledger, MLflow's store and reports."""

    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    """MLflow server; None keeps runs in SQLite in the home."""

    mlflow_ui_url: str | None = Field(default=None, validation_alias="ALIGNFLOW_MLFLOW_UI_URL")
    """Where people open MLflow's pages, for links; None is MLFLOW_TRACKING_URI where it is a server's."""

    prefect_api_url: str | None = Field(default=None, validation_alias="PREFECT_API_URL")
    """Prefect server; None starts a temporary one for the run."""

    ledger_url: SecretStr | None = Field(default=None, validation_alias="ALIGNFLOW_LEDGER_URL")
    """Postgres database of the ledger; None keeps it in SQLite in the home."""


def resolve_home(home: Path | str | None) -> Path:
    """`home` as given, else ALIGNFLOW_HOME, else `.alignflow` here; absolute."""
    return Path(home or Settings().home).expanduser().absolute()


def ledger_path(home: Path) -> Path:
    """The ledger's SQLite file of a home."""
    return home / "ledger.db"


def has_ledger(home: Path) -> bool:
    """Whether there is a ledger to ask, without opening any."""
    return bool(Settings().ledger_url) or ledger_path(home).exists()


def without_password(address: str) -> str:
    """An address as it may be shown and kept."""
    password = urlsplit(address).password if "://" in address else None
    return address.replace(f":{password}@", ":***@") if password else address
