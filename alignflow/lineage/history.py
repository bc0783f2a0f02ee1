"""The history of a model: what the ledger says happened, with the figures of the runs' reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignflow.errors import RecipeError
from alignflow.evaluation import is_rate, leading_figures
from alignflow.files import atomic_write_text
from alignflow.ledger import Happened, Milestone, champion, milestones
from alignflow.lineage.history_plot import history_plot
from alignflow.pipeline import as_text, cell_of, load_report, moment, page_of, recent_runs
from alignflow.stages import Record

PAGE = "history.html.j2"
CANDIDATE, CHAMPION = "aligned", "champion"
BAR_WIDE = 20
COLOURS = {
    "promoted": "green",
    "by hand": "green",
    "rejected": "red",
    "inconclusive": "yellow",
    "rollback": "magenta",
}
VERDICTS: dict[str, Happened] = {"reject": "rejected", "inconclusive": "inconclusive"}


class Entry(Record):
    """One thing that happened to a model, and how good it was then."""

    time: str
    happened: Happened
    generation: int | None
    """That it became, or that was gone back to."""
    undone: bool
    """Whether a rollback has undone it since."""
    figure: float | None
    """Of the primary metric, on the evaluation set of its run; None where no report is left."""
    interval: list[float] | None
    run: str | None
    """Id of the run that made it."""
    snapshot: str | None
    reason: str


class History(Record):
    """What happened to a model, oldest first."""

    model: str
    champion: int
    """Generation that is served now."""
    metric: str | None
    """Whose figures are shown: what the gate decided by last, if reports have it."""
    entries: list[Entry]


def history_of_model(home: Path, model: str) -> History:
    """What happened to a registered model of a home.

    Raises:
        DataError: There is no ledger.
        RecipeError: It knows no such model.
    """
    told = milestones(home, model)
    head = champion(home, model)
    reports = _retrains(home, model)
    metric = _metric(reports)
    found = [*_overruled(told, reports), *told]
    entries: list[Entry] = []
    for one in sorted(found, key=lambda entry: datetime.fromisoformat(entry.time)):
        run, who = _report_of(one, reports, entries)
        figures = run["evaluation"].get(who, {}) if run else {}
        spread = run["evaluation_intervals"].get(who, {}) if run else {}
        entries.append(
            Entry(
                **one._asdict(),
                figure=figures.get(metric),
                interval=spread.get(metric),
                run=run["run_id"] if run and who == CANDIDATE else None,
            )
        )
    if head is None:
        raise RecipeError(f"{model} has no champion in {home} yet.")
    return History(model=model, champion=head.generation, metric=metric, entries=entries)


def _retrains(home: Path, model: str) -> list[Mapping[str, Any]]:
    """Reports of the model's retrains that came to a verdict, oldest first."""
    reports: list[Mapping[str, Any]] = []
    for run in reversed(recent_runs(home)):
        with suppress(RecipeError):  # deleted meanwhile, or damaged: a figure is missing then
            report = load_report(home, run)
            retrain = report.retrain or {}
            if retrain.get("model") == model and retrain.get("outcome"):
                reports.append(report)
    return reports


def _metric(reports: Sequence[Mapping[str, Any]]) -> str | None:
    for report in reversed(reports):
        figures = report["evaluation"].get(CANDIDATE, {})
        for name in ((report["retrain"].get("gate") or {}).get("judge"), *leading_figures()):
            if name in figures:
                return name
    return None


def _overruled(
    told: Sequence[Milestone], reports: Sequence[Mapping[str, Any]]
) -> Iterator[Milestone]:
    """Verdicts that the ledger keeps no more, since a person promoted the candidate after all."""
    by_hand = {one.snapshot for one in told if one.happened == "by hand" and one.snapshot}
    for report in reports:
        retrain = report["retrain"]
        happened = VERDICTS.get(retrain.get("verdict"))
        if happened and retrain["snapshot"] in by_hand and "ended" in report:
            reasons = "; ".join((retrain.get("gate") or {}).get("reasons", []))
            yield Milestone(report["ended"], happened, None, reasons, retrain["snapshot"])


def _report_of(
    one: Milestone, reports: Sequence[Mapping[str, Any]], before: Sequence[Entry]
) -> tuple[Mapping[str, Any] | None, str]:
    """The report that has the figures of a milestone, and as which model."""
    snapshot = one.snapshot
    if one.happened == "rollback":
        named = (e for e in before if e.generation == one.generation and e.happened != "rollback")
        snapshot = next((entry.snapshot for entry in named), snapshot)
    if snapshot is not None:
        of_snapshot = (r for r in reports if r["retrain"]["snapshot"] == snapshot)
        return next(of_snapshot, None), CANDIDATE
    judged = (r for r in reports if r["retrain"].get(CHAMPION) == one.generation)
    return next(judged, None), CHAMPION


def print_history(found: History, console: Console) -> None:
    """A line for each thing that happened, its figure as a bar, then the reasons."""
    if found.metric:
        console.print(Text(f"{found.model}: {found.metric} over time\n", "bold"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("gen", "when", "what"):
        table.add_column(name, no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for entry in found.entries:
        colour = "dim" if entry.undone else COLOURS.get(entry.happened, "")
        table.add_row(
            "-" if entry.generation is None else str(entry.generation),
            moment(entry.time),
            Text(f"{entry.happened}{', undone' if entry.undone else ''}", colour),
            as_text(found.metric or "", entry.figure),
            Text(_bar(entry, found), colour),
        )
    console.print(table, soft_wrap=False)
    console.print(Text(f"\n{found.model} is generation {found.champion} now.\n"))
    for entry in found.entries:
        stamp = "" if entry.generation is None else f" {entry.generation}"
        console.print(Text(f"{entry.happened}{stamp}: {entry.reason}"), soft_wrap=True)
        if entry.run:
            console.print(Text(f"  alignflow show {entry.run}"), soft_wrap=True)


def _bar(entry: Entry, found: History) -> str:
    """The figure as a length: a rate from 0 to 1, another figure up to the largest."""
    figures = [one.figure for one in found.entries if one.figure is not None]
    if entry.figure is None:
        return ""
    top = 1.0 if all(is_rate(found.metric or "", figure) for figure in figures) else max(figures)
    share = min(max(entry.figure / top, 0.0), 1.0) if top else 0.0
    eighths = round(share * BAR_WIDE * 8)
    return "█" * (eighths // 8) + ("" if eighths % 8 == 0 else " ▏▎▍▌▋▊▉"[eighths % 8])


def write_history(home: Path, found: History) -> Path:
    """Writes the history as a page into the home and returns its path."""
    path = home / "runs" / "histories" / f"{found.model}.html"
    rows = [
        {
            **entry.model_dump(),
            "when": moment(entry.time),
            "cell": cell_of(found.metric or "", entry.figure, entry.interval),
        }
        for entry in found.entries
    ]
    plot = history_plot([(e.happened, e.generation, e.figure, e.interval) for e in found.entries])
    atomic_write_text(path, page_of(PAGE, found=found, rows=rows, plot=plot))
    return path
