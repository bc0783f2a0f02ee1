"""What a stage shows in the Prefect UI. Prefect being away never reaches the stage."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from alignflow.pipeline import line_plot
from alignflow.stages import EVENTS_FILE, Artifact, StageSpec, metric_history, read_events

SECONDS_BETWEEN_UPDATES = 3.0

logger = logging.getLogger(__name__)


def _unless_away(show: Callable[..., Any]) -> Callable[..., None]:
    """`show`, except that its failure stands in the log alone."""

    @wraps(show)
    def shown(*arguments: Any, **keywords: Any) -> None:
        try:
            show(*arguments, **keywords)
        except Exception:
            logger.warning("Prefect did not take an artifact", exc_info=True)

    return shown


show_table = _unless_away(create_table_artifact)
show_markdown = _unless_away(create_markdown_artifact)
_show_image = _unless_away(create_image_artifact)
_show_link = _unless_away(create_link_artifact)


def link_mlflow_run(address: str) -> None:
    """Links the MLflow run from the flow run."""
    _show_link(address, link_text="MLflow run", key="mlflow-run")


class StageArtifacts:
    """The progress of a running stage, and its figures once it has finished."""

    def __init__(self, spec: StageSpec) -> None:
        self._stage = spec.stage
        self._progress: Any = None
        self._updated = time.monotonic()

    def event(self, event: Mapping[str, Any]) -> None:
        """Moves the progress artifact, at most once in three seconds."""
        now = time.monotonic()
        if event["kind"] != "progress" or now - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = now
        self._show(100.0 * event["done"] / max(event["total"], 1))

    @_unless_away
    def _show(self, percent: float) -> None:
        percent = min(percent, 100.0)
        if self._progress is None:
            self._progress = create_progress_artifact(percent, key=f"{self._stage}-progress")
        else:
            update_progress_artifact(self._progress, progress=percent)

    def finished(self, artifact: Artifact) -> None:
        """Full progress, the table of metrics and the loss curve."""
        self._show(100.0)
        rows = [{"metric": name, "value": value} for name, value in artifact.result.metrics.items()]
        if rows:
            text = f"{self._stage}, {artifact.seconds:.1f} s: `{artifact.path}`"
            show_table(rows, key=f"{self._stage}-metrics", description=text)
        history = metric_history(read_events(artifact.directory / EVENTS_FILE))
        if len(history.get("loss", {})) > 1:
            plot = line_plot(history["loss"], f"{self._stage} loss by step").encode()
            _show_image(
                "data:image/svg+xml;base64," + base64.b64encode(plot).decode(),
                key=f"{self._stage}-loss",
                description=f"Training loss of {self._stage}.",
            )
