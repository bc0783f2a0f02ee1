"""The report of one run: `report.json` for programs, `report.html` for people, a table at the end.

No torch here. What the page shows beyond the JSON (curves, samples, settings) is read from the
finished artifacts that the JSON names.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignflow.errors import RecipeError
from alignflow.evaluation import is_rate
from alignflow.files import atomic_write_json, atomic_write_text, digest_json, point_to
from alignflow.pipeline.answers import SideBySide, retrain_flips
from alignflow.pipeline.decision import decision, home_of, home_option, next_steps, sentence
from alignflow.pipeline.expense import cost_of, in_words, machine, now
from alignflow.pipeline.report_page import (
    CHAMPION,
    cell_text,
    loss_curves,
    metric_rows,
    render_cell,
    render_page,
)
from alignflow.recipe import METHODS, Recipe
from alignflow.stages import (
    ADAPTER,
    MODEL,
    WITHOUT_ANSWERS,
    Artifact,
    Record,
    RowAccount,
    StageOutcome,
    StageResult,
    StageState,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
REPORT_FILE, LATEST = "report.json", "latest"
SHOWN_CHARACTERS = 240
"""Of a prompt or an answer, in the terminal."""
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
    """Model (`base`, `sft`, `aligned`, `merged`, a retrain's `champion`) to metric to figure."""
    evaluation_intervals: dict[str, dict[str, list[float]]]
    """Model to metric to the ends of its 95 % interval over prompts."""
    adapter: str | None
    """Directory of the last policy's adapter; of its weights after full tuning."""
    merged_model: str | None
    """Directory of the merged model, which loads without alignflow."""
    mlflow: dict[str, str | None]
    """`tracking_uri`, `experiment` and `run_id`; `problem` where something is not recorded."""
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
    beside: Mapping[str, Artifact] | None = None,
    busy_seconds: float = 0.0,
) -> dict[str, Any]:
    """What happened in a run, as JSON; `Report` says what its entries are.

    Args:
        recipe: Of the run.
        run_id: Names it.
        status: How it ended.
        seconds: Wall time.
        stages: What became of each.
        mlflow: Where it is recorded.
        beside: Evaluations of single other models, by what these are to the run.
        busy_seconds: In which stages were at work.
    """
    evaluation: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for outcome in stages:
        if outcome.result is not None:
            evaluation |= outcome.result.details.get("evaluation", {})
            intervals |= outcome.result.details.get("intervals", {})
    for model, artifact in (beside or {}).items():
        details = artifact.result.details
        evaluation[model] = _only(details.get("evaluation", {}))
        intervals[model] = _only(details.get("intervals", {}))
    here = machine()
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "recipe": recipe.name,
        "recipe_digest": digest_json(recipe.model_dump(mode="json")),
        "status": status,
        "seconds": round(seconds, 3),
        "ended": now(),
        "machine": here,
        "cost": cost_of(busy_seconds, here),
        "stages": [_stage(outcome) for outcome in stages],
        "evaluation": evaluation,
        "evaluation_intervals": intervals,
        "adapter": _made(stages, POLICY_STAGES, ADAPTER, MODEL),
        "merged_model": _made(stages, ["merge"], MODEL),
        "registered_model": recipe.registered_model,
        "mlflow": dict(mlflow),
    }


def _only(figures: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of the one model that was evaluated."""
    return next(iter(figures.values()), {})


def _stage(outcome: StageOutcome) -> dict[str, Any]:
    result = outcome.result or StageResult()
    report = StageReport(
        **outcome.model_dump(exclude={"seconds", "result", "error", "exit_code", "aside"}),
        seconds=round(outcome.seconds, 3),
        metrics=result.metrics,
        rows=result.rows or RowAccount(),
        error=outcome.error or "",
    )
    return report.model_dump(mode="json", exclude=None if report.error else {"error"})


def _made(stages: Iterable[StageOutcome], by: Iterable[str], *names: str) -> str | None:
    """The last folder, of one of these names, that stages made."""
    folders = [
        folder
        for stage in stages
        if stage.stage in by and stage.artifact
        for name in names
        if (folder := stage.artifact / name).is_dir()
    ]
    return str(folders[-1]) if folders else None


def report_file(home: Path, run_id: str) -> Path:
    """Where a run's report stands; its page beside it."""
    return home / "runs" / run_id / REPORT_FILE


def recent_runs(home: Path) -> list[str]:
    """Ids of the runs that left a report, the newest first."""
    written: dict[str, float] = {}
    for path in (home / "runs").glob(f"*/{REPORT_FILE}"):
        with suppress(FileNotFoundError):  # somebody deletes the run
            written[path.parent.name] = path.stat().st_mtime
    return sorted(written, key=lambda name: -written[name])


def write_report(home: Path, report: Mapping[str, Any], recipe: Recipe | None = None) -> Path:
    """Writes `report.json` and `report.html`, which shows the recipe; returns their directory.

    `latest` in the home leads to it. For MLflow there is the page without answers too.
    """
    path = report_file(home, report["run_id"])
    atomic_write_json(path, report)
    atomic_write_text(path.with_suffix(".html"), render_page(report, recipe))
    shared = path.parent / WITHOUT_ANSWERS / path.with_suffix(".html").name
    atomic_write_text(shared, render_page(report, recipe, with_answers=False))
    point_to(home / LATEST, path.parent)
    return path.parent


def load_report(home: Path | str, run_id: str) -> Report:
    """A run's report.

    Raises:
        RecipeError: There is no such run, or its report is damaged; the message lists recent runs.
    """
    path = report_file(Path(home), run_id)
    try:
        return Report(json.loads(path.read_text()))
    except OSError:
        names = ", ".join(recent_runs(Path(home))[:5]) or "none"
        raise RecipeError(f"There is no run {run_id} in {home}. Recent runs: {names}.") from None
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}). Run the recipe again.") from error


def key_figure(stage: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The figure that says most about a stage, before and after it."""
    name, metrics = stage["stage"], stage["metrics"]
    if stage["state"] in ("failed", "skipped"):
        return stage.get("error", "")
    if compared := _compared(name, metrics, report["evaluation"]):
        return _change(*compared)
    if name == "prepare":
        rows = stage["rows"]
        dropped = sum(rows["dropped"].values())
        return f"{rows['read']} rows, {rows['held_out']} held out, {dropped} dropped"
    for metric in ("preference_accuracy", "accuracy", "loss"):
        if metrics.get(metric) is not None:
            return f"{metric} {as_text(metric, metrics[metric])}"
    return ""


def _compared(
    name: str, metrics: Mapping[str, Any], evaluation: Mapping[str, Mapping[str, float]]
) -> tuple[str, float, float] | None:
    """Metric, and what it was before and after a stage."""
    before = next((evaluation[model] for model in BEFORE.get(name, ()) if model in evaluation), {})
    after = evaluation.get(AFTER.get(name, ""), {})
    for metric in ("accuracy", "perplexity_general"):
        if metric in before and metric in after:
            return metric, before[metric], after[metric]
    if name == "evaluate":
        judged = [evaluation[model] for model in ("sft", "base", "aligned") if model in evaluation]
        ends = [judged[0], judged[-1]] if len(judged) > 1 else []
        sampled = [end["sampled_accuracy"] for end in ends if "sampled_accuracy" in end]
        if len(sampled) == 2:
            return "sampled_accuracy", sampled[0], sampled[1]
    if name == "pretrain" and metrics.get("perplexity_domain") is not None:
        before, after = metrics["perplexity_domain_before"], metrics["perplexity_domain"]
        return "perplexity_domain", before, after
    return None


def champion_figure(stage: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The champion's figure beside a stage's `key_figure`; empty where that compares nothing."""
    champion = report["evaluation"].get(CHAMPION)
    compared = _compared(stage["stage"], stage["metrics"], report["evaluation"])
    if champion is None or compared is None or stage["state"] in ("failed", "skipped"):
        return ""
    return as_text(compared[0], champion.get(compared[0]))


def _change(metric: str, before: float | None, after: float | None) -> str:
    return f"{metric} {as_text(metric, before)} → {as_text(metric, after)}"


def as_text(metric: str, value: float | None) -> str:
    """A rate in per cent, another figure with three digits."""
    if value is None:
        return "-"
    return f"{value:.1%}" if is_rate(metric, value) else f"{value:.3g}"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The closing table, the verdict with what speaks for it, and where to look further."""
    console.print(_stage_table(report), soft_wrap=False)
    verdict = sentence(report.get("retrain"))
    if CHAMPION in report["evaluation"]:
        console.print()
        console.print(_contest_table(report), soft_wrap=False)
    print_flips(retrain_flips(report), console)
    if verdict:
        console.print(Text(f"\n{verdict}"), soft_wrap=True)
        _print_lines(next_steps(report), console)
    closing = [f"{report['status']} in {report['seconds']:.1f} s", *in_words(report)]
    console.print(Text(f"\n{', '.join(closing)}"), soft_wrap=True)
    _print_lines(_places(report), console)


def _print_lines(labelled: Iterable[tuple[str, str]], console: Console) -> None:
    for label, value in labelled:
        console.print(Text(f"{label:<14}{value}"), soft_wrap=True)


def _stage_table(report: Mapping[str, Any]) -> Table:
    champion = CHAMPION in report["evaluation"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("before → after")
    if champion:
        table.add_column(CHAMPION)
    colours = {"failed": "red", "skipped": "dim", "cached": "cyan", "completed": "green"}
    for stage in report["stages"]:
        table.add_row(
            stage["stage"],
            Text(stage["state"], colours.get(stage["state"], "")),
            f"{stage['seconds']:.1f}",
            Text(key_figure(stage, report)),
            *([champion_figure(stage, report)] if champion else []),
        )
    return table


def _contest_table(report: Mapping[str, Any]) -> Table:
    """Candidate and champion on the same prompts: leading figures with their intervals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    models = [model for model in ("aligned", CHAMPION) if model in report["evaluation"]]
    table.add_column("metric (95 % interval)")
    for model in models:
        table.add_column("candidate" if model == "aligned" else CHAMPION)
    for row in metric_rows(report, leading=True, models=models):
        name = f"{row['name']} (lower is better)" if row["lower_is_better"] else row["name"]
        table.add_row(name, *(cell_text(cell) for cell in row["cells"]))
    return table


def print_flips(
    flips: Sequence[SideBySide], console: Console, title: str = "answers that flipped"
) -> None:
    """Answers that flipped; long ones cut, since the page has them whole."""
    if not flips:
        return
    console.print(Text(f"\n{title}", "bold"))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for flip in flips:
        colour = "green" if flip.change == "fixed" else "red"
        table.add_row(Text(flip.change, colour), Text(_cut(flip.question)))
        table.add_row("  wanted", Text(_cut(flip.target)))
        for said in flip.answers:
            table.add_row(f"  {said.model}{said.mark and ', '}{said.mark}", Text(_cut(said.text)))
    console.print(table, soft_wrap=False)


def _cut(text: str) -> str:
    """A text as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


def print_runs(reports: Iterable[Mapping[str, Any]], console: Console) -> None:
    """A line per run: its verdict or status, and the leading figure of what it made."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "ended", "accuracy"):
        table.add_column(column)
    table.add_column("seconds", justify="right")
    for report in reports:
        evaluation = report["evaluation"]
        made = next((evaluation[m] for m in ("merged", "aligned", "sft") if m in evaluation), {})
        table.add_row(
            Text(report["run_id"]),
            decision(report.get("retrain")) or report["status"],
            as_text("accuracy", made.get("accuracy")),
            f"{report['seconds']:.0f}",
        )
    console.print(table, soft_wrap=False)


def _places(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What to open next."""
    home = home_of(report)
    if made := report["merged_model"] or report["adapter"]:
        yield "merged model" if report["merged_model"] else "adapter", made
        command = ["alignflow", "generate", report["run_id"], *home_option(report)]
        yield "try it", f'{shlex.join(command)} "your prompt"'
    if home is not None:
        yield "report", str(report_file(home, report["run_id"]).with_suffix(".html"))
    address = report["mlflow"].get("tracking_uri") or ""
    if problem := report["mlflow"].get("problem"):
        yield "MLflow", f"{problem}: {address}"
        address = ""
    if address.startswith("http"):
        yield "MLflow", address
    elif address:
        yield "MLflow", f"mlflow ui --backend-store-uri {shlex.quote(address)}"
    if home is not None and (home / "prefect").is_dir():
        yield "Prefect", f"PREFECT_HOME={shlex.quote(str(home / 'prefect'))} prefect server start"
