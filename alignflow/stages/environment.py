"""Environment variables of the processes alignflow starts, and of Prefect inside this one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from alignflow.recipe import STAGES

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "WANDB_DISABLED": "true",
}
QUIET_LIBRARIES = {
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""A thread of OpenMP that waits sleeps: one that spins on a busy machine takes its core from the
thread it waits for. For GNU's OpenMP, which torch has; read when torch is loaded."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
SECRETS_OF_OTHERS = (
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "ALIGNFLOW_LEDGER_URL",
)


def prefect_environment(home: Path) -> dict[str, str]:
    """Settings for Prefect in the process that runs a flow; set them before prefect is imported.

    Without PREFECT_API_URL Prefect starts a temporary server for the run. Its database and the
    results of tasks stay in the home, so that `Cached` outlives the process.
    """
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
    }
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def stage_environment(
    stage: str, base: Mapping[str, str] | None = None, offline: bool | None = None
) -> dict[str, str]:
    """Whole environment of a stage's process: only some stages may reach the Hub."""
    environment = dict(os.environ if base is None else base)
    for name in SECRETS_OF_OTHERS:
        environment.pop(name, None)
    environment |= NO_TELEMETRY | QUIET_LIBRARIES
    for name, value in SLEEPING_THREADS.items():
        environment.setdefault(name, value)
    if (not STAGES[stage].online) if offline is None else offline:
        environment.pop("HF_TOKEN", None)
        environment |= OFFLINE
    return environment
