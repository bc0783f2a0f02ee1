"""Runs side by side: settings that differ, figures, learning curves, answers that flipped."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignflow.errors import RecipeError
from alignflow.evaluation import Answer, leading_figures, lower_is_better, read_answers
from alignflow.files import atomic_write_text, digest_json
from alignflow.pipeline.answers import SideBySide, flips_between
from alignflow.pipeline.decision import decision
from alignflow.pipeline.expense import in_words
from alignflow.pipeline.overlay import blocks, overlay_plot
from alignflow.pipeline.page import page_of
from alignflow.pipeline.report import print_flips
from alignflow.pipeline.report_page import (
    CURVES_LEADING,
    artifacts_of,
    cell_of,
    cell_text,
    history_of,
)
from alignflow.recipe import DataSource

PAGE = "comparison.html.j2"
MOST_RUNS = 6
"""That can be told apart in one plot."""
RESULTS = ("aligned", "merged", "sft", "base")
"""Models of a run, the one that it is about first."""
ABSENT = "-"
CONTENTS = "sources."
"""Before a data source, whose value is the digest of its rows; its name stands under `data` too."""
HEX_DIGEST, SHOWN_OF_DIGEST = 64, 12


class Curve(NamedTuple):
    """One metric of one stage, over the steps of each run; empty where a run has none."""

    stage: str
    metric: str
    lines: list[dict[int, float]]


class Comparison(NamedTuple):
    """What differs between runs, each called by a letter."""

    letters: list[str]
    reports: list[Mapping[str, Any]]
    settings: dict[str, list[str]]
    """Setting to its value in each run."""
    metrics: dict[str, list[dict[str, Any]]]
    """Metric to a cell for each run's result."""
    curves: list[Curve]
    flips: dict[str, list[SideBySide]]
    """`A, B` to the answers that flipped between the first run and another."""


def compare(reports: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compares runs of one home or of several; artifacts that are gone are left out.

    Raises:
        RecipeError: They are more than can be told apart, or one is named twice.
    """
    names = [report["run_id"] for report in reports]
    if len(reports) > MOST_RUNS or len(set(names)) < len(names):
        raise RecipeError(
            f"{len(names)} runs were named, {len(set(names))} of them different; up to {MOST_RUNS} "
            "different ones can be compared. Leave some out."
        )
    letters = list(string.ascii_uppercase[: len(reports)])
    answers = [_answers(report) for report in reports]
    others = zip(letters[1:], answers[1:], strict=True)
    return Comparison(
        letters=letters,
        reports=list(reports),
        settings=_differing([_settings(report) for report in reports]),
        metrics=_metrics(reports),
        curves=list(_curves(reports)),
        flips={
            f"{letters[0]}, {letter}": flips
            for letter, theirs in others
            if (flips := flips_between((letters[0], answers[0]), (letter, theirs)))
        },
    )


def result_of(report: Mapping[str, Any]) -> str | None:
    """The evaluated model that a run is about."""
    return next((model for model in RESULTS if model in report["evaluation"]), None)


def _answers(report: Mapping[str, Any]) -> dict[str, Answer]:
    for stage in ("evaluate", "merge"):
        for entry in report["stages"]:
            if entry["stage"] == stage and entry["artifact"]:
                found = read_answers(Path(entry["artifact"]), result_of(report))
                if found:
                    return found
    return {}


def _settings(report: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(Stage, setting) to what the stage was told, as text; (stage, "") says that it was there."""
    told: dict[tuple[str, str], str] = {}
    for stage, artifact in artifacts_of(report).items():
        told[stage, ""] = "yes"
        told[stage, "seed"] = str(artifact.spec.seed)
        told |= {(stage, name): text for name, text in _flat(artifact.spec.params)}
    return told


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        path = before if not before and name == "section" else f"{before}{name}."
        if isinstance(value, Mapping):
            yield from _flat(value, path)  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield path.removesuffix("."), _in_short(value)


def _in_short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_in_short(one) for one in cast("list[Any]", value)) or ABSENT
    if isinstance(value, dict) and "source" in value and set(value) <= set(DataSource.model_fields):
        said = DataSource.model_validate(value).model_dump(mode="json", exclude_defaults=True)
        further = {name: one for name, one in said.items() if name != "source"}
        return f"{said['source']} {json.dumps(further)}" if further else said["source"]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_digest = len(text) == HEX_DIGEST and set(text) <= set(string.hexdigits)
    return text[:SHOWN_OF_DIGEST] if is_digest else text


def _differing(told: Sequence[Mapping[tuple[str, str], str]]) -> dict[str, list[str]]:
    """Settings that are not the same in all; one that several stages share stands once."""
    stages: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for stage, name in dict.fromkeys(place for one in told for place in one):
        everywhere = all((stage, "") in one for one in told)
        values = tuple(one.get((stage, name), ABSENT) for one in told)
        named_above = name.startswith(CONTENTS) and ABSENT in values
        if len(set(values)) > 1 and (everywhere or not name) and not named_above:
            stages.setdefault((name, values), []).append(stage)
    return {_setting_name(name, shared): list(values) for (name, values), shared in stages.items()}


def _setting_name(name: str, stages: Sequence[str]) -> str:
    if not name:
        return f"stage {', '.join(stages)}"
    return f"{stages[0]}.{name}" if len(stages) == 1 else f"{name} ({', '.join(stages)})"


def _metrics(reports: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    results = [result_of(report) or "" for report in reports]
    judged = list(zip(results, reports, strict=True))
    known = {name for model, report in judged for name in report["evaluation"].get(model, {})}
    leading = [name for name in leading_figures() if name in known]
    return {
        name: [
            cell_of(
                name,
                report["evaluation"].get(model, {}).get(name),
                report["evaluation_intervals"].get(model, {}).get(name),
            )
            for model, report in judged
        ]
        for name in [*leading, *sorted(known - set(leading))]
    }


def _curves(reports: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    histories = [
        {stage: history_of(artifact) for stage, artifact in artifacts_of(report).items()}
        for report in reports
    ]
    for stage in dict.fromkeys(stage for history in histories for stage in history):
        for metric in CURVES_LEADING:
            lines = [history.get(stage, {}).get(metric, {}) for history in histories]
            if any(len(line) > 1 for line in lines):
                yield Curve(stage, metric, lines)


def summary(report: Mapping[str, Any]) -> list[str]:
    """How a run ended, and when, where and at what cost."""
    return [decision(report.get("retrain")) or report["status"], *in_words(report)]


def print_comparison(found: Comparison, console: Console) -> None:
    """The comparison at the width of the terminal."""
    for letter, report in zip(found.letters, found.reports, strict=True):
        ended, *facts = summary(report)
        console.print(Text(f"{letter}  {report['run_id']}: {ended}"))
        console.print(Text(f"   {', '.join(facts)}"))
    _print_table("settings that differ", found.letters, found.settings, console)
    leading = [name for name in leading_figures() if name in found.metrics]
    cells = {
        f"{name} (lower is better)" if lower_is_better(name) else name: [
            cell_text(cell) for cell in found.metrics[name]
        ]
        for name in leading or found.metrics
    }
    _print_table("figures (95 % intervals)", found.letters, cells, console)
    _print_curves(found, console)
    for pair, flips in found.flips.items():
        print_flips(flips, console, f"answers that flipped between {pair}")


def _print_table(
    title: str, letters: Sequence[str], rows: Mapping[str, Sequence[str]], console: Console
) -> None:
    console.print(Text(f"\n{title}", "bold"))
    if not rows:
        console.print("none")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *letters):
        table.add_column(name, overflow="fold")
    for name, values in rows.items():
        table.add_row(Text(name), *(Text(value) for value in values))
    console.print(table, soft_wrap=False)


def _print_curves(found: Comparison, console: Console) -> None:
    if not found.curves:
        return
    console.print(Text("\nlearning curves, each on one scale for all runs", "bold"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for curve in found.curves:
        values = [v for line in curve.lines for v in line.values() if math.isfinite(v)]
        for letter, line in zip(found.letters, curve.lines, strict=True):
            ends = f"{line[min(line)]:.3g} → {line[max(line)]:.3g}" if line else ABSENT
            drawn = blocks(line, min(values), max(values)) if line else ""
            table.add_row(f"{curve.stage} {curve.metric}", letter, drawn, ends)
    console.print(table, soft_wrap=False)


def write_comparison(home: Path, found: Comparison) -> Path:
    """Writes the comparison as a page into the home and returns its path.

    It lies where `prefs erase` looks, for it holds texts.
    """
    names = [report["run_id"] for report in found.reports]
    path = home / "runs" / "comparisons" / f"{digest_json(names)[:SHOWN_OF_DIGEST]}.html"
    curves = [(f"{one.stage} {one.metric}", overlay_plot(one.lines)) for one in found.curves]
    page = page_of(
        PAGE,
        found=found,
        runs=list(zip(found.letters, found.reports, strict=True)),
        summary=summary,
        curves=curves,
        lower_is_better=lower_is_better,
    )
    atomic_write_text(path, page)
    return path


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison for programs: no texts."""
    return {
        "runs": [report["run_id"] for report in found.reports],
        "settings": found.settings,
        "evaluation": [
            report["evaluation"].get(result_of(report) or "", {}) for report in found.reports
        ],
        "evaluation_intervals": [
            report["evaluation_intervals"].get(result_of(report) or "", {})
            for report in found.reports
        ],
        "curves": [one._asdict() for one in found.curves],
        "flips": {pair: [one.change for one in flips] for pair, flips in found.flips.items()},
    }
