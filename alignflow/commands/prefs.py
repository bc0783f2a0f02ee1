"""`alignflow prefs`: add, status, show, quarantine, freeze, withdraw, export, holdout, erase."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeElapsedColumn

from alignflow.commands.options import Home, Json
from alignflow.errors import DataError, RecipeError
from alignflow.ledger import printable
from alignflow.pipeline import plain_console, redraws, text_column
from alignflow.settings import resolve_home

if TYPE_CHECKING:
    from alignflow.ledger import Erasable

prefs = typer.Typer(
    help="""Preferences: taken in once, none lost, each one's whole life on record.

    Try it:  alignflow prefs add feedback.jsonl && alignflow prefs status""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FromSet = Annotated[str, typer.Option("--from", help="Preference set.")]
OneSet = Annotated[str | None, typer.Option("--from", help="Only this preference set.")]
Reason = Annotated[str, typer.Option("--reason", help="Kept on record.")]
BAR_FROM_BYTES = 4 * 1024 * 1024


@prefs.command()
def add(
    sources: Annotated[
        list[str],
        typer.Argument(help="Files, folders, or - for JSONL on stdin.", metavar="SOURCE..."),
    ],
    into: Annotated[str, typer.Option("--into", help="Preference set.")] = "default",
    form: Annotated[
        str | None, typer.Option("--form", help="What the rows are, where columns do not tell.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="OUR_NAME=NAME_IN_THE_FILE; may be repeated."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Takes in preferences: .jsonl, .jsonl.gz, .json, .parquet, .csv or .tsv, in any known form.

    What was taken in before is a duplicate. The exit code is 65 if a file was refused; the others
    are taken in all the same.

    \b
    Examples:
      alignflow prefs add feedback/ --into support
      alignflow prefs add answers.csv --column prompt=question
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import Told, add_stream
    from alignflow.ledger import add as add_files

    place = resolve_home(home)
    told = Told(form, tuple(_mapping(entry) for entry in columns or ()))
    if sources == ["-"]:
        added = add_stream(place, sys.stdin.buffer, into, told)
    elif "-" in sources:
        raise RecipeError("- (stdin) cannot be mixed with files; give one or the other.")
    else:
        with _progress(plain_console(stderr=as_json)) as on_progress:
            added = add_files(place, [Path(source) for source in sources], into, on_progress, told)
    result = added.as_json()
    counts = added.counts
    lines = [
        f"{added.files} files, {result['read']} pairs read: {counts.accepted} accepted "
        f"({counts.held_out} held out, {counts.contradictory} contradictory), "
        f"{counts.duplicates} duplicates, {counts.quarantined} quarantined"
    ]
    if counts.unpaired:
        lines.append(f"{counts.unpaired} single ratings kept until an opposite one of their prompt")
    lines += [f"  {number} {why}: {added.first[why]}" for why, number in added.reasons.items()]
    for entry in added.refused:
        moved = f"; moved to {entry.moved_to}" if entry.moved_to else ""
        lines.append(f"refused ({entry.reason}): {entry.message}{moved}")
    _print(result, as_json, lines)
    if added.refused:
        raise typer.Exit(DataError.exit_code)


def _mapping(entry: str) -> tuple[str, str]:
    ours, mark, theirs = entry.partition("=")
    if not (ours and mark and theirs):
        raise RecipeError(f"--column {entry!r}: wanted OUR_NAME=NAME_IN_THE_FILE.")
    return ours, theirs


@prefs.command()
def status(
    name: OneSet = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Says where the rows are: waiting, reserved, consumed, held out, contradictory.

    \b
    Examples:
      alignflow prefs status
      alignflow prefs status --from support --json
    """  # noqa: D301 (click's mark)
    from alignflow.gate import power_of
    from alignflow.ledger import STATES
    from alignflow.ledger import status as read_status
    from alignflow.recipe import GateSection

    now = read_status(resolve_home(home), name)
    counts = ", ".join(f"{now[state]} {state}" for state in STATES if now[state])
    lines = [
        f"{now['rows']} rows: {counts or 'none'}",
        f"{now['new']} newer than the last verdict, {now['quarantined']} quarantined",
        *("snapshot {name}: {rows} rows, {state}".format(**entry) for entry in now["snapshots"]),
    ]
    if now["champion"]:
        lines.append("champion: {model} generation {generation}".format(**now["champion"]))
    # what a gate that is judged on the hold-out could find, at its defaults
    lines.append(power_of(now["held_out_prompts"], GateSection()).text)
    _print(now, as_json, lines)


@prefs.command()
def show(row_id: str, home: Home = None, as_json: Json = False) -> None:
    """Tells a row's whole life: seen where and when, in which snapshots, in which models.

    \b
    Examples:
      alignflow prefs show 4f1c2a
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import show as read_row

    _print(read_row(resolve_home(home), row_id), as_json)


@prefs.command()
def quarantine(
    name: OneSet = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Lists what was refused: reason, file, offset, and the beginning of its bytes.

    \b
    Examples:
      alignflow prefs quarantine --limit 20
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import quarantined

    refused = quarantined(resolve_home(home), name, limit)
    lines = [
        "{reason}: {file} at {offset}: {message}\n    {raw}".format(**entry) for entry in refused
    ]
    _print(refused, as_json, lines or ["nothing is quarantined"])


@prefs.command()
def freeze(
    name: FromSet = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Reserves the waiting rows in a snapshot; an undecided snapshot is named again instead.

    \b
    Examples:
      alignflow prefs freeze --from support
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import freeze as freeze_rows

    frozen = freeze_rows(resolve_home(home), name)
    _print({**frozen._asdict(), "path": str(frozen.path)}, as_json)


@prefs.command()
def withdraw(
    snapshot: str,
    reason: Reason,
    name: FromSet = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Gives the rows of a snapshot without a verdict back, as if it had never been frozen.

    For a recipe that cannot finish: the next retrain freezes them again, with its own recipe.

    \b
    Examples:
      alignflow prefs withdraw s3-4f1c2a --reason "wrong recipe"
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import withdraw as withdraw_snapshot

    withdraw_snapshot(resolve_home(home), snapshot, reason, name=name)
    _print({"snapshot": snapshot, "withdrawn": reason}, as_json)


@prefs.command()
def holdout(
    share: Annotated[float, typer.Option("--share", help="Share of prompts, 0 to 0.5.")],
    salt: Annotated[str | None, typer.Option("--salt", help="Default: a random one.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Renews the hold-out: prompts not seen before are decided anew, the others stay.

    Do so after some 50 verdicts, or yearly: what is looked at often says less.

    \b
    Examples:
      alignflow prefs holdout --share 0.1
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import renew_holdout

    renew_holdout(resolve_home(home), share, salt)
    _print({"share": share, "applies_to": "prompts not seen before"}, as_json)


@prefs.command()
def export(
    snapshot: str,
    output: Annotated[Path | None, typer.Option("--output", help="File to write.")] = None,
    name: FromSet = "default",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Writes a snapshot's rows as Parquet with the columns id, prompt, chosen and rejected.

    \b
    Examples:
      alignflow prefs export s3-4f1c2a --output rows.parquet
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import training_rows

    path = training_rows(resolve_home(home), name, snapshot)
    target = output or Path(f"{snapshot}.parquet")
    try:
        with path.open("rb") as rows, target.open("xb") as file:
            shutil.copyfileobj(rows, file)
    except FileExistsError as error:
        raise RecipeError(f"{target} exists already; give another --output.") from error
    _print({"snapshot": snapshot, "path": str(target.absolute())}, as_json)


@prefs.command()
def erase(
    row_id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Every row of this source, annotator or file.")
    ] = None,
    reason: Reason = "erased by request",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Removes the text of rows from the ledger and the home's files; the ids stay.

    \b
    Examples:
      alignflow prefs erase 4f1c2a
      alignflow prefs erase --source ada --reason "left the company" --yes
    """  # noqa: D301 (click's mark)
    from alignflow.ledger import erasable
    from alignflow.ledger import erase as erase_rows

    if (row_id is None) == (source is None):
        raise RecipeError("give either an ID or --source S.")
    place = resolve_home(home)
    if not yes:
        _ask(erasable(place, row_id=row_id, source=source))
    done = erase_rows(place, row_id=row_id, source=source, reason=reason)
    _print(done._asdict(), as_json)


SHOWN_IDS, NOT_ERASED = 5, 130


def _ask(reached: Erasable) -> None:
    """Shows what goes, and ends the command unless a person says yes.

    Raises:
        RecipeError: There is nobody to ask.
    """
    shown = ", ".join(row[:12] for row in reached.rows[:SHOWN_IDS])
    more = len(reached.rows) - SHOWN_IDS
    named = f" ({shown}{f' and {more} more' if more > 0 else ''})" if reached.rows else ""
    lines = [
        f"The texts of {len(reached.rows)} rows{named} and {reached.ratings} ratings go for good, "
        "from the ledger, snapshots, reports, prepared data and the inbox."
    ]
    lines += [
        f"{entry['model']} generation {entry['generation']} was trained on some of them and keeps "
        "what it learned."
        for entry in reached.models
    ]
    if not sys.stdin.isatty():
        raise RecipeError("\n".join([*lines, "Give --yes to go on."]))
    typer.echo("\n".join(lines), err=True)
    if not typer.confirm("Erase them?", err=True):
        raise typer.Exit(NOT_ERASED)


def _print(answer: Any, as_json: bool, texts: Sequence[str] | None = None) -> None:
    """The answer as JSON, or `texts`, else its fields; in them no markup, no control characters."""
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for text in _fields(answer) if texts is None else texts:
        lines = [printable(line.encode("utf-8", "backslashreplace")) for line in text.split("\n")]
        plain_console().print("\n".join(lines))


def _fields(answer: dict[str, Any]) -> Iterator[str]:
    for field, value in answer.items():
        entries = value if isinstance(value, list) else [value]
        for entry in entries or ["none"]:
            yield f"{field}: {'' if entry is None else entry}"


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    columns = (
        text_column("{task.description}"),
        BarColumn(),
        text_column("{task.percentage:.0f} %  {task.fields[rate]:,.0f} rows/s"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def report(label: str, rows: int, done: int, size: int) -> None:
            if size < BAR_FROM_BYTES or not redraws(console):
                return
            if label not in tasks:
                tasks[label] = progress.add_task(Path(label).name, total=size, rate=0.0)
            task = progress.tasks[progress.task_ids.index(tasks[label])]
            rate = rows / max(task.elapsed or 0.0, 1e-3)
            progress.update(tasks[label], completed=min(done, size), rate=rate)

        yield report
