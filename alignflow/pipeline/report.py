"""The report of one run: `report.json` for programs, `report.html` for people, a table at the end.

No torch here. What the page shows beyond the JSON (curves, samples, settings) is read from the
finished artifacts that the JSON names.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from alignflow.errors import RecipeError
from alignflow.evaluation import is_rate
from alignflow.files import atomic_write_json, atomic_write_text, digest_json
from alignflow.pipeline.report_page import loss_curves, render_cell, render_page
from alignflow.recipe import METHODS, Recipe
from alignflow.stages.layout import ADAPTER, MODEL
from alignflow.stages.outcome import StageOutcome, StageState
from alignflow.stages.spec import Record, RowAccount

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
POLICY_STAGES = ("pretrain", "sft", *METHODS)
BEFORE = {"sft": ("base",), "merge": ("aligned",), **dict.fromkeys(METHODS, ("sft", "base"))}
"""Stage to the model that its result is compared with: the first that was evaluated."""
AFTER = {"sft": "sft", "merge": "merged", **dict.fromkeys(METHODS, "aligned")}


class StageReport(Record):
    """One stage of a run."""

    stage: str
    key: str | None
    """Names its work; None for a stage that was not planned."""
    state: StageState
    seconds: float
    """Wall time in this run, retries included."""
    attempts: int
    artifact: Path | None
    """Directory of what it made."""
    mlflow_run_id: str | None
    metrics: dict[str, float | None]
    """Final figures; rates are fractions from 0 to 1."""
    rows: RowAccount
    error: str = ""
    """Why it failed or was passed over."""


class Report(dict[str, Any]):
    """What happened in a run: the content of its `report.json`, and a name for each entry.

    In a notebook it shows itself.
    """

    run_id: str
    """Names the run; `load_report` finds it again."""
    recipe: str
    """Its name."""
    status: str
    """`completed`, `failed`, `cancelled` or `suspended`."""
    seconds: float
    """Wall time of the run."""
    evaluation: dict[str, dict[str, float]]
    """Model (`base`, `sft`, `aligned`, `merged`) to metric to figure."""
    evaluation_intervals: dict[str, dict[str, list[float]]]
    """Model to metric to the ends of its 95 % bootstrap interval over prompts."""
    adapter: str | None
    """Directory of the last policy's adapter; of its weights after full tuning."""
    merged_model: str | None
    """Directory of the merged model, which loads without alignflow."""
    mlflow: dict[str, str | None]
    """`tracking_uri`, `experiment` and `run_id`."""
    retrain: dict[str, Any] | None = None
    """What a retrain decided: `verdict`, `outcome`, `gate`, `generation` and more."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.__dict__.update({name: self[name] for name in Report.__annotations__ if name in self})

    @property
    def stages(self) -> list[StageReport]:
        """What became of each stage, in order."""
        return [StageReport.model_validate(stage) for stage in self["stages"]]

    def plot(self) -> Figure:
        """Loss curves of the stages that trained: `savefig` it, or let the notebook show it."""
        from matplotlib import pyplot

        curves = loss_curves(self)
        figure = pyplot.figure(figsize=(4 * max(len(curves), 1), 3), layout="constrained")
        for number, (stage, losses) in enumerate(curves.items(), 1):
            axis = figure.add_subplot(1, len(curves), number)
            for name, points in losses.items():
                axis.plot(list(points), list(points.values()), label=name)
            axis.set(title=stage, xlabel="step", ylabel="loss")
            axis.legend()
        pyplot.close(figure)  # a notebook shows what the cell returns, not this figure twice
        return figure

    def __repr__(self) -> str:
        states = ", ".join(f"{stage.stage} {stage.state}" for stage in self.stages)
        return f"<Report {self.run_id}: {self.status} in {self.seconds:.1f} s; {states}>"

    def _repr_html_(self) -> str:
        figures = {stage["stage"]: key_figure(stage, self) for stage in self["stages"]}
        return render_cell(self, figures)


def build_report(
    recipe: Recipe,
    run_id: str,
    status: str,
    seconds: float,
    stages: Sequence[StageOutcome],
    mlflow: Mapping[str, Any],
) -> dict[str, Any]:
    """What happened in a run, as JSON.

    Args:
        recipe: What was asked for.
        run_id: Names the run.
        status: `completed`, `failed` or `cancelled`.
        seconds: Wall time of the whole run.
        stages: What became of each stage, in order.
        mlflow: `tracking_uri`, `experiment` and `run_id`.
    """
    evaluation, intervals = _evaluation(stages)
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "recipe": recipe.name,
        "recipe_digest": digest_json(recipe.model_dump(mode="json")),
        "status": status,
        "seconds": round(seconds, 3),
        "stages": [_stage(outcome) for outcome in stages],
        "evaluation": evaluation,
        "evaluation_intervals": intervals,
        "adapter": _trained(stages),
        "merged_model": _merged(stages),
        "registered_model": recipe.registered_model,
        "mlflow": dict(mlflow),
    }


def _stage(outcome: StageOutcome) -> dict[str, Any]:
    result = outcome.result
    rows = (result.rows if result else None) or RowAccount()
    return {
        "stage": outcome.stage,
        "key": outcome.key,
        "state": outcome.state,
        "seconds": round(outcome.seconds, 3),
        "attempts": outcome.attempts,
        "artifact": str(outcome.artifact) if outcome.artifact else None,
        "mlflow_run_id": outcome.mlflow_run_id,
        "metrics": dict(result.metrics) if result else {},
        "rows": rows.model_dump(mode="json"),
        **({"error": outcome.error} if outcome.error else {}),
    }


def _evaluation(
    stages: Iterable[StageOutcome],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
    """Figures and intervals by model, of every stage that judged models."""
    evaluation: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for outcome in stages:
        if outcome.result is not None:
            evaluation |= outcome.result.details.get("evaluation", {})
            intervals |= outcome.result.details.get("intervals", {})
    return evaluation, intervals


def _trained(stages: Iterable[StageOutcome]) -> str | None:
    """Directory of the last policy's adapter; of its weights after full tuning."""
    made = [
        folder
        for outcome in stages
        if outcome.stage in POLICY_STAGES and outcome.artifact
        for folder in [_first_folder(outcome.artifact, ADAPTER, MODEL)]
        if folder
    ]
    return made[-1] if made else None


def _merged(stages: Iterable[StageOutcome]) -> str | None:
    made = (stage.artifact for stage in stages if stage.stage == "merge" and stage.artifact)
    return next((folder for path in made if (folder := _first_folder(path, MODEL))), None)


def _first_folder(directory: Path, *names: str) -> str | None:
    return next((str(directory / name) for name in names if (directory / name).is_dir()), None)


def run_directory(home: Path, run_id: str) -> Path:
    """Where a run's report stands."""
    return home / "runs" / run_id


def write_report(home: Path, report: Mapping[str, Any], recipe: Recipe | None = None) -> Path:
    """Writes `report.json` and `report.html`, and returns their directory.

    Args:
        home: Directory of all results.
        report: From `build_report`.
        recipe: Shown among the settings if given.
    """
    directory = run_directory(home, report["run_id"])
    atomic_write_json(directory / "report.json", report)
    atomic_write_text(directory / "report.html", render_page(report, recipe))
    return directory


def load_report(home: Path | str, run_id: str) -> Report:
    """A run's report.

    Raises:
        RecipeError: There is no such run, or its report is damaged; the message lists recent runs.
    """
    path = run_directory(Path(home), run_id) / "report.json"
    try:
        return Report(json.loads(path.read_text()))
    except OSError:
        recent = sorted(path.parent.parent.glob("*/report.json"), key=lambda p: -p.stat().st_mtime)
        names = ", ".join(other.parent.name for other in recent[:5]) or "none"
        raise RecipeError(f"There is no run {run_id} in {home}. Recent runs: {names}.") from None
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}). Run the recipe again.") from error


def key_figure(stage: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The figure that says most about a stage, before and after it."""
    name, metrics, evaluation = stage["stage"], stage["metrics"], report["evaluation"]
    if stage["state"] in ("failed", "skipped"):
        return stage.get("error", "")
    if name in AFTER:
        before = next((evaluation[model] for model in BEFORE[name] if model in evaluation), {})
        after = evaluation.get(AFTER[name], {})
        for metric in ("accuracy", "perplexity_general"):
            if metric in before and metric in after:
                return (
                    f"{metric} {as_text(metric, before[metric])} → {as_text(metric, after[metric])}"
                )
    if name == "evaluate":
        ends = [evaluation[model] for model in ("sft", "base", "aligned") if model in evaluation]
        if len(ends) > 1 and all("sampled_accuracy" in end for end in (ends[0], ends[-1])):
            first, last = ends[0]["sampled_accuracy"], ends[-1]["sampled_accuracy"]
            return f"sampled_accuracy {first:.1%} → {last:.1%}"
    if name == "pretrain" and metrics.get("perplexity_domain") is not None:
        before, after = metrics["perplexity_domain_before"], metrics["perplexity_domain"]
        return f"perplexity_domain {before:.3g} → {after:.3g}"
    if name == "prepare":
        rows = stage["rows"]
        dropped = sum(rows["dropped"].values())
        return f"{rows['read']} rows, {rows['held_out']} held out, {dropped} dropped"
    for metric in ("preference_accuracy", "accuracy", "loss"):
        if metrics.get(metric) is not None:
            return f"{metric} {as_text(metric, metrics[metric])}"
    return ""


def as_text(metric: str, value: float | None) -> str:
    """A rate in per cent, another figure with three digits."""
    if value is None:
        return "-"
    return f"{value:.1%}" if is_rate(metric, value) else f"{value:.3g}"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The closing table, where the results are, and how to look further."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("before → after")
    colours = {"failed": "red", "skipped": "dim", "cached": "cyan", "completed": "green"}
    for stage in report["stages"]:
        colour = colours.get(stage["state"], "")
        figure = key_figure(stage, report)
        table.add_row(
            stage["stage"],
            f"[{colour}]{stage['state']}[/]" if colour else stage["state"],
            f"{stage['seconds']:.1f}",
            figure.replace("[", "\\["),
        )
    console.print(table)
    console.print(f"\n{report['status']} in {report['seconds']:.1f} s", highlight=False)
    for label, value in _places(report):
        console.print(f"{label:<14}{value}", highlight=False, markup=False, soft_wrap=True)


def _places(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to open next."""
    places = []
    if report["merged_model"]:
        places.append(("merged model", report["merged_model"]))
        command = f'alignflow generate {shlex.quote(report["merged_model"])} "your prompt"'
        places.append(("try it", command))
    elif report["adapter"]:
        places.append(("adapter", report["adapter"]))
    home = _home_of(report)
    if home is not None:
        page = run_directory(home, report["run_id"]) / "report.html"
        places.append(("report", str(page)))
    address = report["mlflow"].get("tracking_uri")
    if address:
        places.append(("MLflow", _mlflow_command(address)))
    if home is not None and (home / "prefect").is_dir():
        folder = shlex.quote(str(home / "prefect"))
        places.append(("Prefect", f"PREFECT_HOME={folder} prefect server start"))
    return places


def _mlflow_command(address: str) -> str:
    if address.startswith("http"):
        return address
    return f"mlflow ui --backend-store-uri {shlex.quote(address)}"


def _home_of(report: Mapping[str, Any]) -> Path | None:
    """The home that a report's artifacts stand in: <home>/artifacts/<stage>/<key>."""
    for stage in report["stages"]:
        if stage["artifact"]:
            return Path(stage["artifact"]).parents[2]
    return None
