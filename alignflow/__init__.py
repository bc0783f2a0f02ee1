"""alignflow: fine-tuning as retryable, certified stages, from Python as from the command line.

    import alignflow as af

    recipe = af.load_recipe("deployments/recipes/quickstart.yaml", {"dpo.beta": 0.2})
    findings = af.check(recipe)
    report = af.run(recipe, home="results")
    report.evaluation["aligned"]["accuracy"]

Nothing here imports torch, MLflow or Prefect before it is used; docs/python.md has more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignflow.checking.checked import Check, check
    from alignflow.errors import AlignflowError
    from alignflow.lineage.look import Waiting
    from alignflow.lineage.retrain import retrain
    from alignflow.pipeline.existing_model import Evaluation, evaluate, generate, merge
    from alignflow.pipeline.report import Report, load_report
    from alignflow.pipeline.run import run
    from alignflow.recipe import Recipe
    from alignflow.recipe.file import load_recipe

__version__ = "0.1.0"
__all__ = [
    "AlignflowError",
    "Check",
    "Evaluation",
    "Recipe",
    "Report",
    "Waiting",
    "check",
    "evaluate",
    "generate",
    "load_recipe",
    "load_report",
    "merge",
    "retrain",
    "run",
]
_PLACES = {
    "alignflow.checking.checked": ("Check", "check"),
    "alignflow.errors": ("AlignflowError",),
    "alignflow.lineage.look": ("Waiting",),
    "alignflow.lineage.retrain": ("retrain",),
    "alignflow.pipeline.existing_model": ("Evaluation", "evaluate", "generate", "merge"),
    "alignflow.pipeline.report": ("Report", "load_report"),
    "alignflow.pipeline.run": ("run",),
    "alignflow.recipe": ("Recipe",),
    "alignflow.recipe.file": ("load_recipe",),
}


def __getattr__(name: str) -> Any:
    place = next((module for module, names in _PLACES.items() if name in names), None)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
