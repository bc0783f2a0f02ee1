"""The front door: `alignflow run | check | show | generate`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from alignflow.errors import AlignflowError, RecipeError
from alignflow.settings import resolve_home

app = typer.Typer(
    help="""Fine-tuning that can be left unattended.

    Try it:  alignflow run deployments/recipes/quickstart.yaml""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Home = Annotated[
    Path | None, typer.Option("--home", help="Directory of all results. Default: .alignflow here.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, all else on stderr.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field, e.g. --set dpo.beta=0.2.")
]


@app.command()
def run(
    recipe: Path, overrides: Overrides = None, home: Home = None, as_json: Json = False
) -> None:
    """Trains, aligns, evaluates and merges as RECIPE says. Work done before is not done again.

    Example:  alignflow run deployments/recipes/quickstart.yaml --set seed=1
    """
    from alignflow.environment import prefect_environment
    from alignflow.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    place = resolve_home(home)
    os.environ.update(prefect_environment(place))
    from alignflow.progress import shown_on
    from alignflow.report import print_report
    from flows.finetune import finetune

    console = Console(stderr=True) if as_json else Console()
    with shown_on(console):
        report = finetune(loaded, home=place)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_report(report, console)


@app.command()
def show(run_id: str, home: Home = None, as_json: Json = False) -> None:
    """Prints the report of a run again."""
    from alignflow.report import load_report, print_report

    report = load_report(resolve_home(home), run_id)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_report(report, Console())


@app.command()
def generate(
    model: Path, prompt: str, max_new_tokens: int = 256, temperature: float | None = None
) -> None:
    """Answers PROMPT with the merged model in the directory MODEL."""
    from alignflow.evaluation.answer import answer

    typer.echo(answer(model, prompt, max_new_tokens=max_new_tokens, temperature=temperature))


def main() -> None:
    """Entry of the command: an AlignflowError is one message and its exit code, no traceback."""
    sys.exit(exit_code_of(sys.argv[1:]))


def exit_code_of(arguments: list[str]) -> int:
    """Runs a command line and returns its exit code; wrong usage is 64."""
    try:
        outcome: Any = app(args=arguments, standalone_mode=False, prog_name="alignflow")
        return outcome if isinstance(outcome, int) else 0
    except click.UsageError as error:
        error.show()
        return RecipeError.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except AlignflowError as error:
        typer.echo(error.message, err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        typer.echo("Cancelled. Finished stages are kept; run again to continue.", err=True)
        return 130


if __name__ == "__main__":
    main()
