"""`alignflow preview`: rows as the model reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from alignflow.commands.options import Home, Json, Overrides
from alignflow.pipeline import PreviewedRow, Tokens, plain_console, write_preview
from alignflow.pipeline import preview as previewed
from alignflow.recipe import load_recipe

STYLES = {"prompt": "cyan", "chosen": "green", "rejected": "red", "completion": "green"}
MARKS = ("«", "»")
"""Around what has loss, where there are no colours."""


def preview(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    overrides: Overrides = None,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="Part of the data, such as sft; again for another."),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=0, help="First rows of each source that are shown.")
    ] = 3,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a page instead, and more.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Shows rows as the model reads them: prompt and response, where there is loss, what is dropped.

    Loads no weights. Beside the first rows of each source it shows the first row that is dropped for
    each reason, of the first 1,000. JSON has a line per row: part, row, and of each text its ids,
    tokens and loss. A page (--html) has the first 10,000 rows of each source: lengths as a
    histogram, what is dropped and why, prompts that repeat or are near one that is judged.

    \b
    Examples:
      alignflow preview deployments/recipes/quickstart.yaml --part sft
      alignflow preview my.yaml --part preferences --rows 1 --json
      alignflow preview my.yaml --html data.html
    """  # noqa: D301 (click's mark)
    read = load_recipe(recipe, overrides or [])
    if html is not None:
        counts = write_preview(read, html, parts=part or (), rows=rows, home=home)
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        typer.echo(json.dumps({"page": str(html), **counts}) if as_json else f"{html}: {told}")
        return
    out = plain_console()
    for row in previewed(read, parts=part or (), rows=rows, home=home):
        if as_json:
            typer.echo(json.dumps(row.as_json(), ensure_ascii=False))
        else:
            out.print(_shown(row, coloured=out.color_system is not None))


def _shown(row: PreviewedRow, *, coloured: bool) -> Text:
    text = Text(f"{row.part} {row.source} row {row.row}", style="bold")
    if row.dropped is not None:
        return text.append(f"  dropped, {row.dropped}: {row.message}\n", style="yellow not bold")
    if row.held_out:
        text.append("  held out", style="dim not bold")
    for name, tokens in row.texts.items():
        text.append(f"\n  {name}: " if name != "row" else "\n  ", style="dim not bold")
        text.append(_tokens(name, tokens, coloured=coloured))
        text.append(f"  ({len(tokens.ids)} tokens)", style="dim not bold")
    if row.text is not None:
        text.append(f"\n  {row.text}", style="cyan not bold")
    return text.append("\n")


def _tokens(name: str, tokens: Tokens, *, coloured: bool) -> Text:
    text = Text()
    before = 0
    for word, loss in zip(tokens.tokens, tokens.loss or [0] * len(tokens.ids), strict=True):
        if not coloured and loss != before:
            text.append(MARKS[0] if loss else MARKS[1])
        style = "green underline" if loss else STYLES.get(name, "cyan")
        text.append(word, style=f"not bold {style}")
        before = loss
    if before and not coloured:
        text.append(MARKS[1])
    return text
