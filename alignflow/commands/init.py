"""`alignflow init`: a recipe from a model and a person's own data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from alignflow.checking import check_file
from alignflow.commands.options import Home
from alignflow.drafting import Asked, Interview, Question, draft
from alignflow.errors import RecipeError
from alignflow.files import atomic_write_text
from alignflow.pipeline import plain_console
from alignflow.recipe import SCHEMA_FILE, DataSource, ModelSource
from alignflow.settings import resolve_home

DATABASES = (".sqlite", ".sqlite3", ".db")


def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Hub id, directory, gguf:PATH or builtin:freight-base."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Files, folders, Hub data sets; an SQLite file."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Recipe to write. Default: named for DATA.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="A column's name in DATA."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    home: Home = None,
) -> None:
    """Writes a short recipe for MODEL and DATA, a reason beside each choice, and checks it.

    Looks at the rows (their form, their lengths, what the answers are), at the model and at what
    fits this machine; asks at most five questions, on a terminal. What DATA are is told by their
    columns: demonstrations, pairs, ratings, documents, or prompts with targets. Without a file for
    it, a share of the demonstrations is held out by prompt and asked. With an SQLite file among
    DATA, answers that are SQL are run on it.

    \b
    Examples:
      alignflow init Qwen/Qwen3-0.6B questions.csv
      alignflow init Qwen/Qwen3-0.6B chats.jsonl pairs.jsonl --out support.yaml --yes
      alignflow init builtin:freight-base rows.csv --column prompt=Frage --column completion=Antwort
    """  # noqa: D301 (click's mark)
    rows = [name for name in data if not name.endswith(DATABASES)]
    if not rows:
        raise RecipeError("DATA names no rows; give a file, a folder or a data set of them.")
    path = out or _named_for(rows[0])
    if path.exists():
        raise RecipeError(f"{path} exists already; name another file with --out.")
    columns = dict(_column(text) for text in column or [])
    asked = Asked(
        model=ModelSource.model_validate(model),
        sources=[DataSource(source=name, columns=columns) for name in rows],
        databases=[name for name in data if name not in rows],
        path=path,
        home=resolve_home(home),
    )
    is_asked = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    drafted = draft(asked, Interview(_ask if is_asked else None), _head(asked, data))
    for note in drafted.notes:
        plain_console(stderr=True).print(f"note    {note}")
    if drafted.template is not None:
        atomic_write_text(path.with_suffix(".jinja"), drafted.template)
    atomic_write_text(path, drafted.text)
    raise typer.Exit(_checked(path, drafted.text, asked.home))


def _named_for(source: str) -> Path:
    """A recipe beside the working directory's other files, named for the first of the data."""
    stem = source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return Path(f"{stem.partition('.')[0] or 'recipe'}.yaml")


def _column(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (equals and ours and theirs):
        raise RecipeError(f"--column {text}: write it as OURS=THEIRS, e.g. prompt=question.")
    return ours, theirs


def _ask(question: Question) -> str:
    """The answer to a question on the terminal, by number or word; Enter takes the default."""
    typer.echo(question.text, err=True)
    for number, choice in enumerate(question.choices, 1):
        typer.echo(f"  {number}  {choice}", err=True)
    while True:
        usual = question.choices.index(question.default) + 1
        said = str(typer.prompt("Number", default=str(usual), err=True)).strip()
        if said in question.choices:
            return said
        if said.isdecimal() and 1 <= int(said) <= len(question.choices):
            return question.choices[int(said) - 1]
        typer.echo(f"{said!r} is none of them; give a number.", err=True)


def _head(asked: Asked, data: list[str]) -> list[str]:
    return [
        f"yaml-language-server: $schema={SCHEMA_FILE}",
        f"Drafted by alignflow init {asked.model.source} {' '.join(data)}",
        f"  alignflow preview {asked.path}   # rows as the model reads them",
        f"  alignflow run {asked.path}",
    ]


def _checked(path: Path, text: str, home: Path) -> int:
    """Shows what was written, and what `check` says is wrong with it; its exit code."""
    out, problems = plain_console(), plain_console(stderr=True)
    out.print(text)
    checked = check_file(path, home=home)
    for finding in checked.findings:
        if finding.level in ("error", "warning"):
            problems.print(f"{finding.level:<8}{finding.line}")
    if checked.ok:
        out.print(f"{path} is written and checked. Next: alignflow run {path}")
    else:
        problems.print(f"{path} is written, with errors to repair before it runs.")
    return checked.exit_code
