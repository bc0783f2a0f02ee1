"""`alignflow evaluate` and `alignflow generate`: a model that exists already."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from alignflow.commands.options import Home, Json, Overrides

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Directory of a merged model or of an adapter.")
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Base model of an adapter. Default: the one its files name."),
]


def evaluate(
    model: Model,
    recipe: Annotated[Path, typer.Option("--recipe", help="Says what to judge on, and how.")],
    overrides: Overrides = None,
    base: Base = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Judges MODEL on the evaluation data and metrics of a recipe.

    \b
    Examples:
      alignflow evaluate .alignflow/artifacts/merge/KEY/model --recipe my.yaml
      alignflow evaluate my-adapter --base Qwen/Qwen3-0.6B --recipe my.yaml --json
    """  # noqa: D301 (click's mark)
    from alignflow.checking.checked import preflight
    from alignflow.pipeline.existing_model import judge_model, judging_recipe, require_model
    from alignflow.recipe.file import load_recipe
    from alignflow.settings import resolve_home

    loaded = load_recipe(recipe, overrides or [])
    require_model(model)
    judged = judging_recipe(loaded, model, base)
    preflight(judged, str(recipe))
    found = judge_model(model, judged, resolve_home(home), progress=_show_progress)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print(found)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done} of {total} responses", nl=done == total, err=True)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from alignflow.pipeline.report import as_text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 %")
    for name, value in found["metrics"].items():
        low, high = found["intervals"].get(name, (None, None))
        spread = f"{as_text(name, low)} to {as_text(name, high)}" if low is not None else ""
        table.add_row(name, as_text(name, value), spread)
    Console().print(table)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="A user message; - reads stdin.")],
    system: Annotated[str | None, typer.Option(help="A system message before it.")] = None,
    base: Base = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, help="Sample at this temperature. Default: greedy.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """Answers PROMPT with the model in the directory MODEL.

    \b
    Examples:
      alignflow generate .alignflow/artifacts/merge/KEY/model "How many trucks are in Lyon?"
      alignflow generate my-adapter "Hello" --base Qwen/Qwen3-0.6B --temperature 0.8
    """  # noqa: D301 (click's mark)
    from alignflow.pipeline.existing_model import Question, answer, require_model

    require_model(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    typer.echo(answer(model, Question(text, system, max_new_tokens, temperature, seed), base))
