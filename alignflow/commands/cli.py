"""The front door. Commands are imported when they are used, so that `--help` stays quick."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from alignflow.commands.streams import make_patient, unwritten
from alignflow.errors import AlignflowError, DiskSpaceError, RecipeError

COMMANDS = {
    "init": ("init", "Writes a recipe for your model and your data."),
    "run": ("run", "Prepares, fine-tunes, aligns, evaluates and merges as a recipe says."),
    "decide": ("decide", "Says whether to prompt, retrieve, fine-tune or pre-train."),
    "check": ("check", "Says what is wrong with a recipe before it costs anything."),
    "preview": ("preview", "Shows rows as the model reads them."),
    "show": ("run", "Prints the report of a run again, or compares runs."),
    "history": ("history", "Says what happened to a model, and its quality over time."),
    "evaluate": ("models", "Judges a model that exists already."),
    "generate": ("models", "Answers a prompt with a model that exists already."),
    "doctor": ("doctor", "Says what this machine can run and why not."),
    "up": ("up", "Starts Prefect, a worker and MLflow, with every deployment applied."),
    "merge": ("merge", "Merges adapters into their base."),
    "export": ("export", "Hands a merged model over: to the Hub, Ollama, GGUF or 4 bits."),
    "prefs": ("prefs", "Preference data: ingest, list, snapshot."),
    "promote": ("promotion", "Makes a merged model the champion by hand."),
    "rollback": ("promotion", "Makes an earlier generation the champion again."),
}
"""Name to the module beside this one that defines it, and what `--help` says of it."""
UNEXPECTED, CANCELLED = 70, 130
WrongUsage: Any = typer.TyperException
"""Base of all complaints about a command line; each can `show` itself."""


class Deferred(TyperCommand):
    """Stands for a command, or a group of them, in a module of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """A context of the real command; the caller goes on with that one."""
        name = str(self.name)
        real: Any = getattr(
            importlib.import_module(f"alignflow.commands.{COMMANDS[name][0]}"), name
        )
        if not isinstance(real, typer.Typer):
            function, real = real, typer.Typer(add_completion=False, rich_markup_mode=None)
            real.command(name)(function)
        return typer.main.get_command(real).make_context(info_name, args, parent=parent, **extra)


class CommandGroup(TyperGroup):
    """The top level, in the order of the table."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, text) in COMMANDS.items():
            self.add_command(Deferred(name, short_help=text, help=text))


app = typer.Typer(
    cls=CommandGroup,
    help="""The fine-tuning pipeline a team can leave unattended.

    A recipe says what to train, on what, how, and how to judge it. `check` finds what is wrong with
    it, `run` prepares data, fine-tunes, aligns, evaluates and merges, `show` prints what came out.

    \b
    Start here:
      alignflow init MODEL DATA
      alignflow check deployments/recipes/quickstart.yaml
      alignflow run deployments/recipes/quickstart.yaml
      alignflow show
    """,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
    make_patient()
    code = exit_code_of(sys.argv[1:])
    if error := unwritten():
        typer.echo(f"stdout could not be written in full: {error}", err=True)
        code = code or DiskSpaceError.exit_code
    sys.exit(code)


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
    except Exception as error:
        from alignflow.machine import fault_of

        if fault := fault_of(error):
            typer.echo(fault.message, err=True)
            return fault.exit_code
        traceback.print_exc()
        typer.echo("This is a defect of alignflow; the lines above help to find it.", err=True)
        return UNEXPECTED


if __name__ == "__main__":
    main()
