"""How models are judged: responses, metrics, intervals, and the stage around them.

What loads torch or numpy is imported from its module when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignflow.evaluation.about import (
    declared,
    is_rate,
    leading_figures,
    lower_is_better,
    text_metrics,
)
from alignflow.evaluation.metric_modules import (
    arguments_of,
    compares_responses,
    compute_metric,
    judging_files,
    load_metrics,
    own_file,
)

if TYPE_CHECKING:
    from alignflow.evaluation.measure import Job, Measured, intervals, load_job, responses
    from alignflow.evaluation.scores import Scores, read_scores
    from alignflow.evaluation.statistics import interval

_LATER = {
    **dict.fromkeys(("Job", "Measured", "intervals", "load_job", "responses"), "measure"),
    **dict.fromkeys(("Scores", "read_scores"), "scores"),
    "interval": "statistics",
}

__all__ = [
    "Job",
    "Measured",
    "Scores",
    "arguments_of",
    "compares_responses",
    "compute_metric",
    "declared",
    "interval",
    "intervals",
    "is_rate",
    "judging_files",
    "leading_figures",
    "load_job",
    "load_metrics",
    "lower_is_better",
    "own_file",
    "read_scores",
    "responses",
    "text_metrics",
]


def __getattr__(name: str) -> Any:
    """What is imported when it is asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
