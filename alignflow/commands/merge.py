"""`alignflow merge`: adapters into their base, certified."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from alignflow.commands.options import Json
from alignflow.errors import RecipeError
from alignflow.merging import Certificate
from alignflow.pipeline import plain_console, redraws, text_column


def merge(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Base model: directory, Hub id or gguf:PATH.")
    ],
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Adapter: directory or Hub id; =WEIGHT scales.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of the merged model.")],
    combine: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="ADAPTER=WEIGHT", help="Adds another adapter's delta too."),
    ] = None,
    then: Annotated[
        list[Path] | None,
        typer.Option(metavar="ADAPTER", help="Merged next: one trained on the result so far."),
    ] = None,
    qlora_base: Annotated[
        Literal["dequantized", "original"] | None,
        typer.Option(help="For an adapter trained on NF4. Default: as its stage says, or none."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the merged weights; auto keeps the base's."),
    ] = "auto",
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Leave the logits out: certificate `unverified`.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be merged into what.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Merges ADAPTER into BASE in bounded memory and certifies the result in OUT.

    The bits are those of PEFT's merge_and_unload. A merge that was killed is continued by the same
    command. Exit code 72: the merged model differs from base plus adapter.

    \b
    Examples:
      alignflow merge Qwen/Qwen3-0.6B my-adapter merged
      alignflow merge base first=0.7 merged --with second=0.3
      alignflow merge base adapter merged --dry-run
    """  # noqa: D301 (click's mark)
    from alignflow.merging import demand_passed, merge_request, plan
    from alignflow.merging import merge as write_merged

    asked = merge_request(
        base,
        [_weighted(adapter, default=1.0), *map(_weighted, combine or [])],
        [str(following) for following in then or []],
        qlora_base=qlora_base,
        dtype=dtype,
        verify=not no_verify,
    )
    if dry_run:
        typer.echo(_planned(plan(*asked).describe(), as_json))
        return
    with shown_progress() as progress:
        certificate = write_merged(asked.base, asked.steps, out, asked.options, progress)
    typer.echo(_certified(certificate, out, as_json))
    demand_passed(certificate, out)


@contextmanager
def shown_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr with bytes, bytes per second and time left; None where that is no terminal."""
    console = plain_console(stderr=True)
    if not redraws(console):
        yield None
        return
    columns = (
        text_column("merge"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("merge", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _weighted(text: str, default: float | None = None) -> tuple[str, float]:
    """Reads ADAPTER=WEIGHT.

    Raises:
        RecipeError: There is no number after the `=`.
    """
    name, equals, number = text.rpartition("=")
    if not equals and default is not None:
        return text, default
    try:
        return name, float(number)
    except ValueError as error:
        raise RecipeError(
            f"--with {text}: expected ADAPTER=WEIGHT with a number, as in runs/sft/adapter=0.5."
        ) from error


def _planned(described: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(described, indent=2)
    lines = [
        f"{entry['tensor']}  {'x'.join(map(str, entry['shape']))}  {entry['dtype']}  "
        f"{', '.join(entry['by'])}"
        for entry in described["merged"]
    ]
    head = (
        f"{len(lines)} of {described['tensors']} tensors change, {described['bytes']:,} bytes in "
        f"{described['files']} files. {described['arithmetic']}."
    )
    return "\n".join([head, *lines])


def _certified(certificate: Certificate, out: Path, as_json: bool) -> str:
    if as_json:
        return certificate.model_dump_json(indent=2)
    lines = [f"{out}: {certificate.status}", certificate.arithmetic]
    if certificate.figures:
        lines.append(certificate.in_words())
    return "\n".join([*lines, *certificate.serve.values()])
