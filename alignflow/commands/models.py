"""`alignflow evaluate` and `alignflow generate`: a model that exists already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from alignflow.commands.options import Home, Json, Overrides
from alignflow.commands.streams import as_argument, read_stdin
from alignflow.pipeline import Evaluation, as_text, model_named, plain_console, redraws
from alignflow.pipeline import evaluate as judge
from alignflow.pipeline import generate as ask
from alignflow.recipe import load_recipe
from alignflow.retrieval import Grounding
from alignflow.settings import resolve_home

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A merged model or an adapter: a directory, a run's id, `last`, models:/NAME@champion.",
    ),
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
      alignflow evaluate last --recipe my.yaml
      alignflow evaluate models:/support@champion --recipe my.yaml
      alignflow evaluate my-adapter --base Qwen/Qwen3-0.6B --recipe my.yaml --json
    """  # noqa: D301 (click's mark)
    loaded = load_recipe(recipe, overrides or [])
    judged = judge(model, loaded, base=base, home=home, name=str(recipe), progress=_show_progress)
    if as_json:
        typer.echo(json.dumps(judged.model_dump(mode="json")))
    else:
        _print(judged)


def _show_progress(done: int, total: int) -> None:
    if redraws(plain_console(stderr=True)):
        typer.echo(f"\r{done} of {total} responses", nl=done == total, err=True)


def _print(judged: Evaluation) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 %")
    for name, value in judged.metrics.items():
        low, high = judged.intervals.get(name, (None, None))
        spread = f"{as_text(name, low)} to {as_text(name, high)}" if low is not None else ""
        table.add_row(name, as_text(name, value), spread)
    plain_console().print(table, soft_wrap=False)


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
    index: Annotated[
        Path | None,
        typer.Option(help="An index whose passages stand before PROMPT; the answer names them."),
    ] = None,
    home: Home = None,
) -> None:
    """Answers PROMPT with a model.

    \b
    Examples:
      alignflow generate last "How many trucks are in Lyon?"
      alignflow generate last --index handbook "How many days of leave are there?"
      alignflow generate my-adapter "Hello" --base Qwen/Qwen3-0.6B --temperature 0.8
    """  # noqa: D301 (click's mark)
    directory = model_named(model, resolve_home(home))  # before stdin is waited for
    question = read_stdin() if prompt == "-" else as_argument(prompt)
    response = ask(
        directory,
        question,
        system=system,
        base=base,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        index=index,
        home=home,
    )
    typer.echo(response)
    for passage in Grounding.read(index).passages(question) if index is not None else []:
        typer.echo(f"  from {passage.id}", err=True)
