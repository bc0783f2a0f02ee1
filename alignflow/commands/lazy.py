"""Commands that are imported when they are used, so that `--help` stays quick."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

PACKAGES = Path(__file__).parents[2]


class Deferred(TyperCommand):
    """Stands for a command, or a group of them, in another module."""

    def __init__(self, name: str, target: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help, help=short_help)
        self._target = target

    @property
    def is_there(self) -> bool:
        """Whether the module exists; nothing is imported to find out."""
        place = PACKAGES.joinpath(*self._target.partition(":")[0].split("."))
        return place.with_suffix(".py").is_file() or place.is_dir()

    def real(self) -> Any:
        """The command itself, from a Typer app or a function."""
        module, _, attribute = self._target.partition(":")
        command: Any = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            return typer.main.get_command(command)
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(self.name)(command)
        return typer.main.get_command(app)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """A context of the real command; the caller goes on with that one."""
        return self.real().make_context(info_name, args, parent=parent, **extra)


class CommandGroup(TyperGroup):
    """The top level: commands in their written order, those of other packages deferred."""

    deferred = (
        Deferred(
            "up",
            "alignflow.commands.up:up",
            "Starts Prefect, a worker and MLflow, with every deployment applied.",
        ),
        Deferred("merge", "alignflow.commands.merge:merge", "Merges adapters into their base."),
        Deferred(
            "prefs",
            "alignflow.commands.prefs:prefs_app",
            "Preference data: ingest, list, snapshot.",
        ),
        Deferred(
            "promote",
            "alignflow.commands.promotion:promote",
            "Makes a merged model the champion by hand.",
        ),
        Deferred(
            "rollback",
            "alignflow.commands.promotion:rollback",
            "Makes an earlier generation the champion again.",
        ),
    )

    def list_commands(self, ctx: Any) -> list[str]:
        """All names."""
        return [*super().list_commands(ctx), *self._deferred()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Ours, or the stand-in of another package's."""
        return self._deferred().get(cmd_name) or super().get_command(ctx, cmd_name)

    def _deferred(self) -> dict[str, Deferred]:
        return {str(command.name): command for command in self.deferred if command.is_there}
