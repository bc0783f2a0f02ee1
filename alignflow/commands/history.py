"""`alignflow history`."""

from __future__ import annotations

from typing import Annotated

import typer

from alignflow.commands.options import Home, Json
from alignflow.lineage import history_of_model, print_history, write_history
from alignflow.pipeline import plain_console
from alignflow.settings import resolve_home


def history(
    model: Annotated[
        str, typer.Argument(metavar="NAME", help="Registered name: the recipe's, unless it says.")
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Says what happened to a model: generations, verdicts, rollbacks, and its quality over time.

    It is written as a page too, whose path is printed.

    \b
    Examples:
      alignflow history quickstart
      alignflow history quickstart --json
    """  # noqa: D301 (click's mark)
    place = resolve_home(home)
    found = history_of_model(place, model)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    console = plain_console()
    print_history(found, console)
    console.print(f"\npage          {write_history(place, found)}")
