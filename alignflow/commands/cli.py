"""The front door: `alignflow run | check | show | doctor | evaluate | generate | merge | prefs | up`."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer

from alignflow.commands.check import check
from alignflow.commands.doctor import doctor
from alignflow.commands.lazy import CommandGroup
from alignflow.commands.models import evaluate, generate
from alignflow.commands.run import run, show
from alignflow.errors import AlignflowError, RecipeError

UNEXPECTED, CANCELLED = 70, 130
WrongUsage: Any = typer.TyperException
"""Base of all complaints about a command line; each can `show` itself."""

app = typer.Typer(
    cls=CommandGroup,
    help="""The fine-tuning pipeline a team can leave unattended.

    A recipe says what to train, on what, how, and how to judge it. `check` finds what is wrong with
    it, `run` prepares data, fine-tunes, aligns, evaluates and merges, `show` prints what came out.

    \b
    Start here:
      alignflow check deployments/recipes/quickstart.yaml
      alignflow run deployments/recipes/quickstart.yaml
      alignflow show
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
SHORT_HELP = {
    run: "Prepares, fine-tunes, aligns, evaluates and merges as a recipe says.",
    check: "Says what is wrong with a recipe before it costs anything.",
    show: "Prints the report of a run again.",
    evaluate: "Judges a model that exists already.",
    generate: "Answers a prompt with a model that exists already.",
    doctor: "Says what this machine can run and why not.",
}
for command, short_help in SHORT_HELP.items():
    app.command(short_help=short_help)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as version_of

        typer.echo(f"alignflow {version_of('alignflow')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Entry of the command: an AlignflowError is one message and its exit code, no traceback."""
    sys.exit(exit_code_of(sys.argv[1:]))


def exit_code_of(arguments: list[str]) -> int:
    """Runs a command line and returns its exit code; wrong usage is 64, not click's 2."""
    try:
        outcome: Any = app(args=arguments, standalone_mode=False, prog_name="alignflow")
        return outcome if isinstance(outcome, int) else 0
    except WrongUsage as error:
        error.show()
        return RecipeError.exit_code
    except typer.Exit as error:
        return error.exit_code
    except AlignflowError as error:
        typer.echo(error.message, err=True)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Cancelled. Finished stages are kept; run again to continue.", err=True)
        return CANCELLED
    except Exception:
        traceback.print_exc()
        typer.echo("This is a defect of alignflow; the lines above help to find it.", err=True)
        return UNEXPECTED


if __name__ == "__main__":
    main()
