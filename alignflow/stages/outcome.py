"""What became of one stage in one run: the record that the report is built from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alignflow.stages.spec import Record, StageResult

StageState = Literal["completed", "cached", "failed", "skipped"]


class StageOutcome(Record):
    """One stage of one run."""

    stage: str
    key: str | None = None
    """Stage key; None for a stage that was never planned (skipped)."""
    state: StageState
    seconds: float = 0.0
    """Wall time in this run, retries included."""
    attempts: int = 0
    """Attempts that the artifact took, or that failed; 0 for a skipped stage."""
    artifact: Path | None = None
    """Directory of the finished artifact."""
    mlflow_run_id: str | None = None
    """The MLflow run that produced the artifact, in this run or before."""
    result: StageResult | None = None
    error: str | None = None
    """One sentence for the user."""
    exit_code: int = 0
