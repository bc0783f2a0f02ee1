"""What a run came to and where it is seen, in Markdown: for MLflow's run and for Prefect's.

Figures and reasons only, no text of a row and no error: `prefs erase` does not reach their databases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignflow.evaluation import leading_figures
from alignflow.pipeline.decision import next_steps, sentence
from alignflow.pipeline.report import as_text

FIGURES = 5


def run_note(report: Mapping[str, Any], page: Path) -> str:
    """The verdict or the status first, the leading figures, and links to all that show the run.

    Args:
        report: Of the run.
        page: Its `report.html`.
    """
    verdict = sentence(report.get("retrain"))
    lines = [*_figures(report), *(f"- {line}" for line in _links(report, page))]
    lines += [f"- {label}: `{command}`" for label, command in next_steps(report)]
    return "\n".join([f"**{verdict or report['status']}**", "", *lines])


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    evaluation = report["evaluation"]
    measured = {name for found in evaluation.values() for name in found}
    for name in [name for name in leading_figures() if name in measured][:FIGURES]:
        judged = [
            f"{m} {as_text(name, found[name])}" for m, found in evaluation.items() if name in found
        ]
        yield f"- {name}: {', '.join(judged)}"


def _links(report: Mapping[str, Any], page: Path) -> Iterator[str]:
    yield f"report: `{page}`"
    mlflow = report["mlflow"]
    if mlflow.get("url"):
        yield f"MLflow: [run]({mlflow['url']}), [all runs with rank and figures]({mlflow['table']})"
    else:
        yield f"MLflow: `{mlflow['tracking_uri']}`, run `{mlflow['run_id'] or '-'}`"
    if prefect := report.get("prefect"):
        seen = f"[flow run]({prefect['url']})" if prefect["url"] else "flow run"
        yield f"Prefect: {seen} `{prefect['flow_run']}`"
