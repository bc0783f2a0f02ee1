"""A saved notification block of Prefect is told of verdicts and failures, as the recipe's `notify` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger
from prefect.blocks import notifications as _known  # noqa: F401 (what is not imported cannot be loaded)
from prefect.blocks.core import Block

from alignflow.lineage import RetrainRun
from alignflow.machine import first_line
from alignflow.pipeline import decision
from alignflow.recipe import Recipe
from tasks.flow_runs import page


def notify(recipe: Recipe, subject: str, body: str) -> None:
    """Has the recipe's block say it; what cannot be said stands in the log and fails nothing."""
    if recipe.notify is None:
        return
    try:
        block: Any = Block.load(recipe.notify)
        with block.raise_on_failure():
            block.notify(body, subject)
    except Exception as error:  # the blocks' and their transports' are many
        get_run_logger().warning("%s was not notified: %s", recipe.notify, first_line(error))


def tell_verdict(recipe: Recipe, run: RetrainRun) -> None:
    """Notifies of what a retrain decided."""
    decided = decision(run.notes.model_dump())
    notify(recipe, f"{recipe.registered_model}: {decided}", run.note)


@contextmanager
def failure_told(recipe: Recipe, flow: str) -> Iterator[None]:
    """Notifies of what a flow fails with in the block."""
    try:
        yield
    except Exception as error:
        seen = page() or {}
        lines = [first_line(error), *([seen["url"]] if seen.get("url") else [])]
        notify(recipe, f"{recipe.name}: {flow} failed", "\n".join(lines))
        raise
