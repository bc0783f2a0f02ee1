"""`alignflow promote` and `alignflow rollback`: what the gate does, by hand."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from alignflow.commands.options import Home, Json
from alignflow.lineage import Moved, promote_by_hand, roll_back_by_hand
from alignflow.settings import resolve_home

Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger.")]


def promote(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run's id, `last`, or the directory of a merge artifact."
        ),
    ],
    reason: Reason,
    model: Annotated[
        str | None, typer.Option("--model", help="Registered name. Default: the run's.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Makes a merged model the champion, without a gate.

    Every file is checked against the manifest, and the merge certificate must have passed. The rows
    the model was trained on are consumed, as if the gate had promoted it.

    \b
    Examples:
      alignflow promote support-20261125-175900-1a2b --reason "reviewed by Ada"
      alignflow promote .alignflow/artifacts/merge/4f1c... --model support --reason "hotfix"
    """  # noqa: D301 (click's mark)
    _print(promote_by_hand(resolve_home(home), source, model, reason), as_json)


def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Registered name.")],
    reason: Reason,
    to: Annotated[
        int | None, typer.Option("--to", help="Generation. Default: the one before.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Makes an earlier generation the champion again; the rows of those after it wait again.

    \b
    Examples:
      alignflow rollback support --reason "answers got rude"
      alignflow rollback support --to 3 --reason "bad labels since May"
    """  # noqa: D301 (click's mark)
    _print(roll_back_by_hand(resolve_home(home), model, to, reason), as_json)


def _print(moved: Moved, as_json: bool) -> None:
    head, alias = moved
    if as_json:
        typer.echo(json.dumps({**head._asdict(), "alias": alias.model_dump(mode="json")}))
        return
    typer.echo(f"{head.model}: the champion is generation {head.generation} ({head.reason})")
    typer.echo(alias.text)
