"""`alignflow run` and `alignflow show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from alignflow.checking import preflight
from alignflow.commands.options import Home, Json, Overrides
from alignflow.commands.servers import servers_coming_up
from alignflow.commands.streams import stdout_kept
from alignflow.machine import blaming_full_disk
from alignflow.pipeline import (
    Report,
    comparison,
    load_report,
    plain_console,
    print_report,
    print_runs,
    recent_runs,
    report_file,
    run_named,
)
from alignflow.recipe import Recipe, load_recipe, require_training
from alignflow.settings import resolve_home


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")],
    overrides: Overrides = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Prepares, fine-tunes, aligns, evaluates and merges as RECIPE says.

    What was done before is not done again: a second run is all cached, a changed dpo.beta repeats
    dpo, evaluate and merge. Stop it at any moment; the next run continues. Exit codes: 0 done, 64
    recipe or home, 65 data, 66 artifact or adapter, 67 out of memory, 68 evaluation, 69 NaN, 70
    other or a server that is away, 71 disk full, 72 merge certificate, 75 preempted, 130 cancelled.

    \b
    Examples:
      alignflow run deployments/recipes/quickstart.yaml
      alignflow run my.yaml --set seed=1 --set dpo.beta=0.2 --home /data/alignflow
      alignflow run my.yaml --json > report.json
    """  # noqa: D301 (click's mark)
    loaded = load_recipe(recipe, overrides or [])
    place = resolve_home(home)
    require_training(loaded)
    console = plain_console(stderr=as_json)
    console.print(f"{loaded.name}: {', '.join(loaded.stages)} in {place}")
    preflight(loaded, str(recipe), place)
    with stdout_kept(as_json) as stdout:
        _run(loaded, place, console, stdout if as_json else None)


def _run(recipe: Recipe, home: Path, console: Console, json_to: Any) -> None:
    """Runs the flow in this process, in sight; its report is printed however it ends."""
    servers_answer = servers_coming_up(home)
    from alignflow.pipeline import new_run_id, shown_on
    from flows.finetune import finetune

    servers_answer()
    run_id = new_run_id(recipe.name)
    try:
        with shown_on(console), blaming_full_disk(home):
            finetune(recipe=recipe, home=home, run_id=run_id)
    finally:
        if report_file(home, run_id).is_file():  # else the run did not come far enough
            report = load_report(home, run_id)
            print_report(report, console)
            if json_to is not None:
                json_to.write(json.dumps(report) + "\n")


def show(
    run_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="A run's id, its directory, or `last`, which is meant without any. Several runs "
            "are compared.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="A line for every run, newest first.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Prints the report of a run again, compares runs, or says how every run ended.

    Of several runs: the settings that differ, figures with intervals, learning curves and answers
    that flipped, here and as a page whose path is printed.

    \b
    Examples:
      alignflow show
      alignflow show --all
      alignflow show quickstart-20261125-175900-1a2b --json
      alignflow show quickstart-20261125-175900-1a2b last
    """  # noqa: D301 (click's mark)
    place = resolve_home(home)
    if every:
        reports = [load_report(place, name) for name in recent_runs(place)]
        if as_json:
            typer.echo(json.dumps(reports))
        else:
            print_runs(reports, plain_console())
        return
    reports = [load_report(place, run_named(name, place)) for name in run_ids or ["last"]]
    if len(reports) > 1:
        _compare(reports, place, as_json)
    elif as_json:
        typer.echo(json.dumps(reports[0]))
    else:
        print_report(reports[0], plain_console())


def _compare(reports: list[Report], home: Path, as_json: bool) -> None:
    found = comparison.compare(reports)
    if as_json:
        typer.echo(json.dumps(comparison.as_json(found)))
        return
    console = plain_console()
    comparison.print_comparison(found, console)
    console.print(f"\npage          {comparison.write_comparison(home, found)}")
