"""`alignflow merge`: adapters into their base, certified."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignflow.commands.options import Json
from alignflow.errors import CertificateError, RecipeError

if TYPE_CHECKING:
    from alignflow.merging import AdapterStep, Certificate


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Base model: directory or Hub id.")],
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
    export: Annotated[
        Literal["gguf", "nf4"] | None, typer.Option(help="Also write this format beside OUT.")
    ] = None,
    llama_cpp: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkout of llama.cpp, for --export gguf.")
    ] = None,
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
      alignflow merge base adapter merged --export gguf --llama-cpp ~/llama.cpp
      alignflow merge base adapter merged --dry-run
    """  # noqa: D301 (click's mark)
    from alignflow.merging import MergeOptions, plan, trained_on_nf4
    from alignflow.merging import merge as write_merged
    from alignflow.merging.export import check_export, demand_room, export_model

    if export:
        check_export(export, llama_cpp)
    steps = _steps(adapter, combine or [], then or [])
    if qlora_base is None and any(trained_on_nf4(path) for path, _ in steps[0].members):
        qlora_base = "dequantized"
    options = MergeOptions(
        dtype=dtype,
        quantization="nf4" if qlora_base else None,
        qlora_base=qlora_base or "dequantized",
        verify=not no_verify,
        base_source=base,
    )
    directory = _directory(base)
    if export == "nf4":
        demand_room(directory)
    if dry_run:
        typer.echo(_planned(plan(directory, steps, options).describe(), as_json))
        return
    with shown_progress() as progress:
        certificate = write_merged(directory, steps, out, options, progress)
    typer.echo(_certified(certificate, out, as_json))
    if certificate.status == "failed":
        raise CertificateError(
            f"{out}: the merged model differs from base plus adapter: {_figures(certificate)}. "
            "Merge in a wider type (--dtype float32), or look at the adapter."
        )
    if export:
        typer.echo(export_model(out, export, llama_cpp))


@contextmanager
def shown_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr with bytes, bytes per second and time left; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("merge"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("merge", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _steps(adapter: str, combine: list[str], then: list[Path]) -> list[AdapterStep]:
    """The first merge, of one adapter or of several with weights, and those that follow it."""
    from alignflow.merging import AdapterStep

    path, weight = _weighted(adapter, default=1.0)
    first = AdapterStep(path, weight, tuple(_weighted(text) for text in combine))
    return [first, *(AdapterStep(_directory(str(following))) for following in then)]


def _weighted(text: str, default: float | None = None) -> tuple[Path, float]:
    """Reads ADAPTER=WEIGHT.

    Raises:
        RecipeError: There is no number after the `=`.
    """
    name, equals, number = text.rpartition("=")
    if not equals and default is not None:
        return _directory(text), default
    try:
        return _directory(name), float(number)
    except ValueError as error:
        raise RecipeError(
            f"--with {text}: expected ADAPTER=WEIGHT with a number, as in runs/sft/adapter=0.5."
        ) from error


def _directory(name: str) -> Path:
    """A local directory, or the snapshot of a Hub id on this disk, downloaded where allowed.

    Raises:
        RecipeError: It is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.gguf", "*.h5"]))
    except Exception as error:
        raise RecipeError(
            f"{name} is no directory, and no snapshot of it could be had from the Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Check the name, or unset "
            "HF_HUB_OFFLINE to download it."
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
        lines.append(_figures(certificate))
    return "\n".join([*lines, *certificate.serve.values()])


def _figures(certificate: Certificate) -> str:
    figures = certificate.figures
    if figures is None or not (figures.finite and certificate.finite):
        return "a weight or a logit is not finite"
    return (
        f"KL {figures.kl:.3g} nats per token (limit {certificate.limits.max_kl:g}), most likely "
        f"token equal in {figures.top1_agreement:.2%} of {figures.tokens} "
        f"(limit {certificate.limits.min_top1_agreement:.2%}), largest difference of a "
        f"log-probability {figures.max_logp_difference:.3g}"
    )
