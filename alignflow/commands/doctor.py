"""`alignflow doctor`: what this machine can run and why not."""

from __future__ import annotations

import json

import typer
from rich.text import Text

from alignflow.commands.options import Home, Json
from alignflow.pipeline import plain_console
from alignflow.services import examine
from alignflow.settings import resolve_home

MARKS = {"good": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "bold red")}


def doctor(home: Home = None, as_json: Json = False) -> None:
    """Says what this machine can run and why not: versions, GPU, memory, disk, servers.

    The exit code is 70 if something is broken, else 0.

    \b
    Examples:
      alignflow doctor
      alignflow doctor --home /data/alignflow --json
    """  # noqa: D301 (click's mark)
    facts = examine(resolve_home(home))
    broken = [fact for fact in facts if fact.state == "bad"]
    if as_json:
        answer = {"schema": 1, "ok": not broken, "facts": [fact._asdict() for fact in facts]}
        typer.echo(json.dumps(answer, indent=2))
    else:
        console = plain_console()
        for fact in facts:
            mark, style = MARKS[fact.state]
            console.print(Text.assemble((mark, style), f" {fact.name:<14}", fact.text))
        verdict = f"{len(broken)} to repair" if broken else "this machine can run alignflow"
        console.print(f"\n{verdict}")
    raise typer.Exit(70 if broken else 0)
