"""What a stage shows in the Prefect UI. Prefect being away never reaches the stage."""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from alignflow.pipeline import as_text, curves, plots_alone
from alignflow.stages import Artifact, StageSpec

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
_show_markdown = _unless_away(create_markdown_artifact)
_show_link = _unless_away(create_link_artifact)


def key_of(*words: str) -> str:
    """An artifact's key, whose history Prefect shows; the first word is the recipe's name."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def show_markdown(recipe: str, markdown: str, key: str, description: str) -> None:
    """Shows a text with the run of a recipe."""
    _show_markdown(markdown, key=key_of(recipe, key), description=description)


def show_link(recipe: str, address: str, what: str) -> None:
    """Links an address from the flow run of a recipe."""
    text = f"{what} of a run of {recipe}."
    _show_link(address, link_text=what, key=key_of(recipe, what), description=text)


class StageArtifacts:
    """The progress of a running stage of a recipe, and its figures once it has finished."""

    def __init__(self, recipe: str, spec: StageSpec) -> None:
        self._recipe = recipe
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
            self._progress = create_progress_artifact(
                percent,
                key=self._key("progress"),
                description=f"How far {self._stage} of {self._recipe} is.",
            )
        else:
            update_progress_artifact(self._progress, progress=percent)

    def finished(self, artifact: Artifact) -> None:
        """Full progress, the table of metrics and the learning curves."""
        self._show(100.0)
        metrics = artifact.result.metrics
        rows = [{"metric": name, "value": as_text(name, value)} for name, value in metrics.items()]
        if rows:
            text = f"{self._stage} of {self._recipe}, {artifact.seconds:.1f} s: `{artifact.path}`"
            show_table(rows, key=self._key("metrics"), description=text)
        if drawn := {curve["name"]: curve["svg"] for curve in curves(artifact)}:
            image = base64.b64encode(plots_alone(drawn).encode()).decode()
            _show_markdown(  # an image artifact would show the image's text below it
                f"![learning curves](data:image/svg+xml;base64,{image})",
                key=self._key("curves"),
                description=f"Learning curves of {self._stage} of {self._recipe}, by step.",
            )

    def _key(self, what: str) -> str:
        return key_of(self._recipe, self._stage, what)
