"""`alignflow export`: a merged model for the Hub, for Ollama, as GGUF or in 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from alignflow.commands.models import Model
from alignflow.commands.options import Home, Json
from alignflow.exporting import Exported
from alignflow.exporting import export as exported


def export(
    model: Model,
    to: Annotated[Literal["hub", "ollama", "gguf", "nf4"], typer.Option(help="The form.")],
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="What is written. Default: named here.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Model on the Hub, private if new.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make it public.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be pushed, and push nothing.")
    ] = False,
    llama_cpp: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkout of llama.cpp, which makes GGUF.")
    ] = None,
    outtype: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(help="Type of the weights in GGUF. Default: auto, as the model's."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Then quantize, as in q4_k_m.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Hands MODEL over in another form: only one whose merge certificate passed.

    hub pushes it with a model card of where it comes from, and no rows; --dry-run or --output
    writes the folder instead. ollama writes a Modelfile. gguf takes the converter of llama.cpp.
    nf4 is for bitsandbytes. An adapter may go to the Hub alone.

    \b
    Examples:
      alignflow export last --to hub --repo ada/support --dry-run
      alignflow export models:/support@champion --to hub --repo ada/support
      alignflow export last --to ollama --llama-cpp ~/llama.cpp --quantize q4_k_m
      alignflow export merged --to gguf --llama-cpp ~/llama.cpp --output support.gguf
      alignflow export merged --to nf4
    """  # noqa: D301 (click's mark)
    made = exported(
        model,
        to,
        output=output,
        repo=repo,
        public=public,
        dry_run=dry_run,
        llama_cpp=llama_cpp,
        outtype=outtype,
        quantize=quantize,
        home=home,
    )
    typer.echo(made.model_dump_json(indent=2) if as_json else _told(made))


def _told(made: Exported) -> str:
    return "\n".join([f"{made.output or made.url}: {made.size_bytes:,} bytes", *made.notes])
