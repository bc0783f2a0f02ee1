"""`alignflow prefs`: add, status, show, quarantine, freeze, withdraw, export, holdout, erase."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from alignflow.errors import RecipeError
from alignflow.ledger.reports import printable
from alignflow.settings import resolve_home

prefs_app = typer.Typer(
    help="""Preferences: taken in once, none lost, each one's whole life on record.

    Try it:  alignflow prefs add feedback.jsonl && alignflow prefs status""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Home = Annotated[
    Path | None, typer.Option("--home", help="Directory of all results. Default: .alignflow here.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, all else on stderr.")]
BAR_FROM_BYTES = 4 * 1024 * 1024


@prefs_app.command()
def add(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, or - for JSONL on stdin.", metavar="SOURCE..."),
    ],
    into: Annotated[str, typer.Option("--into", help="Preference set.")] = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Takes in preferences: .jsonl, .jsonl.gz or .parquet. What was taken in before is a duplicate.

    Example:  alignflow prefs add feedback/ --into support
    """
    from alignflow.ledger.ingest import add as add_files
    from alignflow.ledger.ingest import add_stream

    place, console = resolve_home(home), _console(as_json)
    if sources == ["-"]:
        added = add_stream(place, sys.stdin.buffer, into)
    elif "-" in sources:
        raise RecipeError("- (stdin) cannot be mixed with files; give one or the other.")
    else:
        with _progress(console) as on_progress:
            added = add_files(place, [Path(source) for source in sources], into, on_progress)
    result = added.as_json()
    if as_json:
        typer.echo(json.dumps(result))
        return
    counts = added.counts
    _say(
        console,
        f"{added.files} files, {result['read']} pairs read: {counts.accepted} accepted "
        f"({counts.held_out} held out, {counts.contradictory} contradictory), "
        f"{counts.duplicates} duplicates, {counts.quarantined} quarantined",
    )
    if counts.unpaired:
        _say(
            console, f"{counts.unpaired} single ratings kept until an opposite one of their prompt"
        )
    for reason, number in added.reasons.items():
        _say(console, f"  {number} {reason}: {added.first[reason]}")
    for entry in added.refused:
        moved = f"; moved to {entry.moved_to}" if entry.moved_to else ""
        _say(console, f"refused ({entry.reason}): {entry.message}{moved}")


@prefs_app.command()
def status(
    name: Annotated[str | None, typer.Option("--from", help="Only this preference set.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Says where the rows are: waiting, reserved, consumed, held out, contradictory."""
    from alignflow.ledger.reports import STATES
    from alignflow.ledger.reports import status as read_status

    found = read_status(resolve_home(home), name)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = _console(as_json)
    counts = ", ".join(f"{found[state]} {state}" for state in STATES if found[state])
    _say(console, f"{found['rows']} rows: {counts or 'none'}")
    _say(console, f"{found['new']} newer than the last verdict, {found['quarantined']} quarantined")
    for entry in found["snapshots"]:
        _say(console, f"snapshot {entry['name']}: {entry['rows']} rows, {entry['state']}")
    if found["champion"]:
        _say(console, "champion: {model} generation {generation}".format(**found["champion"]))
    _say(console, _power(found["held_out_prompts"]))


def _power(prompts: int) -> str:
    """What a gate that is judged on the hold-out could find, at its defaults."""
    from alignflow.gate import power_of
    from alignflow.recipe import GateSection

    return power_of(prompts, GateSection()).text


@prefs_app.command()
def show(row_id: str, home: Home = None, as_json: Json = False) -> None:
    """Tells a row's whole life: seen where and when, in which snapshots, in which models."""
    from alignflow.ledger.reports import show as read_row

    _print(read_row(resolve_home(home), row_id), as_json)


@prefs_app.command()
def quarantine(
    name: Annotated[str | None, typer.Option("--from", help="Only this preference set.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Lists what was refused: reason, file, offset, and the beginning of its bytes."""
    from alignflow.ledger.reports import quarantined

    found = quarantined(resolve_home(home), name, limit)
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = _console(as_json)
    for entry in found:
        _say(console, "{reason}: {file} at {offset}: {message}\n    {raw}".format(**entry))
    if not found:
        _say(console, "nothing is quarantined")


@prefs_app.command()
def freeze(
    name: Annotated[str, typer.Option("--from", help="Preference set.")] = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Reserves the waiting rows in a snapshot; an undecided snapshot is named again instead."""
    from alignflow.ledger.snapshots import freeze as freeze_rows

    frozen = freeze_rows(resolve_home(home), name)
    _print({**frozen._asdict(), "path": str(frozen.path)}, as_json)


@prefs_app.command()
def withdraw(
    snapshot: str,
    reason: Annotated[str, typer.Option("--reason", help="Kept on record.")],
    name: Annotated[str, typer.Option("--from", help="Preference set.")] = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Gives the rows of a snapshot without a verdict back, as if it had never been frozen.

    For a recipe that cannot finish: the next retrain freezes them again, with its own recipe.
    """
    from alignflow.ledger.verdicts import withdraw as withdraw_snapshot

    withdraw_snapshot(resolve_home(home), snapshot, reason, name=name)
    _print({"snapshot": snapshot, "withdrawn": reason}, as_json)


@prefs_app.command()
def holdout(
    share: Annotated[float, typer.Option("--share", help="Share of prompts, 0 to 0.5.")],
    salt: Annotated[str | None, typer.Option("--salt", help="Default: a random one.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Renews the hold-out: prompts not seen before are decided anew, the others stay.

    Do so after some 50 verdicts, or yearly: what is looked at often says less.
    """
    from alignflow.ledger.holdout import renew_holdout

    renew_holdout(resolve_home(home), share, salt)
    _print({"share": share, "applies_to": "prompts not seen before"}, as_json)


@prefs_app.command()
def export(
    snapshot: str,
    output: Annotated[Path | None, typer.Option("--output", help="File to write.")] = None,
    name: Annotated[str, typer.Option("--from", help="Preference set.")] = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Writes a snapshot's rows as Parquet with the columns id, prompt, chosen and rejected."""
    from alignflow.ledger.snapshots import training_rows

    path = training_rows(resolve_home(home), name, snapshot)
    target = output or Path(f"{snapshot}.parquet")
    if target.exists():
        raise RecipeError(f"{target} exists already; give another --output.")
    shutil.copyfile(path, target)
    _print({"snapshot": snapshot, "path": str(target.absolute())}, as_json)


@prefs_app.command()
def erase(
    row_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Every row of this source, annotator or file.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Kept on record.")] = "erased by request",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Removes the text of rows from the ledger and the home's files; the ids stay."""
    from alignflow.ledger.erasing import erase as erase_rows

    if (row_id is None) == (source is None):
        raise RecipeError("give either an ID or --source S.")
    done = erase_rows(resolve_home(home), row_id=row_id, source=source, reason=reason)
    _print(done._asdict(), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    console = _console(as_json)
    for field, value in found.items():
        entries = value if isinstance(value, list) else [value]
        for entry in entries or ["none"]:
            _say(console, f"{field}: {'' if entry is None else entry}")


def _say(console: Console, text: str) -> None:
    """Prints text that may hold anything: no markup, no control characters."""
    lines = [printable(line.encode("utf-8", "backslashreplace")) for line in text.split("\n")]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _console(as_json: bool) -> Console:
    return Console(stderr=as_json)


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  {task.fields[rate]:,.0f} rows/s"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def report(label: str, rows: int, done: int, size: int) -> None:
            if size < BAR_FROM_BYTES or not console.is_terminal:
                return
            if label not in tasks:
                tasks[label] = progress.add_task(Path(label).name, total=size, rate=0.0)
            task = progress.tasks[progress.task_ids.index(tasks[label])]
            rate = rows / max(task.elapsed or 0.0, 1e-3)
            progress.update(tasks[label], completed=min(done, size), rate=rate)

        yield report
