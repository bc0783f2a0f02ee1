"""`alignflow decide`: prompting, retrieval, fine-tuning or continued pre-training, measured."""

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
from alignflow.deciding import print_decision, write_winner
from alignflow.machine import blaming_full_disk
from alignflow.pipeline import plain_console
from alignflow.recipe import Recipe, load_recipe, require_decide
from alignflow.settings import resolve_home


def decide(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")],
    overrides: Overrides = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FOLDER", help="Put what the winner needs there."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Says whether to prompt, retrieve, fine-tune or pre-train, measured on RECIPE's questions.

    Every arm answers the same questions; the best of the choice part is tested on the others, and
    where they do not tell, it says inconclusive. `alignflow check RECIPE` says beforehand how long it
    takes. What was measured before is not measured again.

    \b
    Examples:
      alignflow decide handbook.yaml
      alignflow decide handbook.yaml --set decide.seeds=5 --write handbook
      alignflow decide handbook.yaml --json > decision.json
    """  # noqa: D301 (click's mark)
    loaded = load_recipe(recipe, overrides or [])
    place = resolve_home(home)
    console = plain_console(stderr=as_json)
    console.print(f"{loaded.name}: {', '.join(require_decide(loaded).compared)} in {place}")
    preflight(loaded, str(recipe), place)
    with stdout_kept(as_json) as stdout:
        decision = _decided(loaded, place, console)
        if as_json:
            stdout.write(json.dumps(decision) + "\n")
    if not as_json:
        console.print()
        print_decision(decision, console)
        console.print(f"{place / 'runs' / decision['run_id'] / 'decide.html'}")
    if write is not None:
        commands = write_winner(decision, loaded, write)
        told = commands or ["Nothing is recommended, so nothing is written."]
        console.print("\n".join(told))


def _decided(recipe: Recipe, home: Path, console: Console) -> dict[str, Any]:
    """Runs the flow in this process, in sight."""
    servers_answer = servers_coming_up(home)
    from alignflow.pipeline import shown_on
    from flows.decide import decide as flow

    servers_answer()
    with shown_on(console), blaming_full_disk(home):
        return flow(recipe, home=home)
