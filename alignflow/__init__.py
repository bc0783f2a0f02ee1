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
    from alignflow.checking.checked import Check as Check
    from alignflow.checking.checked import check as check
    from alignflow.errors import AlignflowError as AlignflowError
    from alignflow.lineage.look import Waiting as Waiting
    from alignflow.lineage.retrain import retrain as retrain
    from alignflow.pipeline.existing_model import Evaluation as Evaluation
    from alignflow.pipeline.existing_model import evaluate as evaluate
    from alignflow.pipeline.existing_model import generate as generate
    from alignflow.pipeline.existing_model import merge as merge
    from alignflow.pipeline.report import Report as Report
    from alignflow.pipeline.report import load_report as load_report
    from alignflow.pipeline.run import run as run
    from alignflow.recipe import Recipe as Recipe
    from alignflow.recipe.file import load_recipe as load_recipe

__version__ = "0.1.0"
_NAMES = {
    "checking.checked": ("Check", "check"),
    "errors": ("AlignflowError",),
    "lineage.look": ("Waiting",),
    "lineage.retrain": ("retrain",),
    "pipeline.existing_model": ("Evaluation", "evaluate", "generate", "merge"),
    "pipeline.report": ("Report", "load_report"),
    "pipeline.run": ("run",),
    "recipe": ("Recipe",),
    "recipe.file": ("load_recipe",),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"alignflow.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(name for names in _NAMES.values() for name in names)])
