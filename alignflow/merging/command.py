"""`alignflow merge`, as a plain function that the command line exposes."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from alignflow.errors import CertificateError, RecipeError
from alignflow.merging.adapter import AdapterStep, trained_on_nf4
from alignflow.merging.certificate import Certificate
from alignflow.merging.merge import merge
from alignflow.merging.options import MergeOptions
from alignflow.merging.planning import plan

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def merge_command(
    base: str,
    adapter: str,
    out: Path,
    *,
    then: list[Path] | None = None,
    combine: list[str] | None = None,
    qlora_base: Literal["dequantized", "original"] | None = None,
    dtype: Dtype = "auto",
    export: Literal["gguf", "nf4"] | None = None,
    llama_cpp: Path | None = None,
    verify: bool = True,
    dry_run: bool = False,
    json: bool = False,
    progress: Callable[[int, int], None] | None = None,
    write: Callable[[str], None] = print,
) -> Certificate | None:
    """Merges an adapter into a base and certifies the result.

    Args:
        base: Directory or Hub id of the base model.
        adapter: Directory or Hub id of the adapter; `ADAPTER=WEIGHT` scales its delta.
        out: Directory of the merged model.
        then: Adapters merged after it, each trained on the preceding result.
        combine: Further adapters of the same base as ADAPTER=WEIGHT, whose deltas are added.
        qlora_base: For an adapter trained on NF4: merge into the dequantized weights it was
            trained on, or into the original ones. None: dequantized for an adapter that says so in
            its base_model.json; any other is taken not to have been trained on NF4.
        dtype: Type of the merged weights; `auto` keeps the base's.
        export: Also write a GGUF file or a 4-bit model beside `out`.
        llama_cpp: For `gguf`: a checkout of llama.cpp, whose converter is run.
        verify: Compare logits of merged and base plus adapter.
        dry_run: Only say what would be merged into what.
        json: Write JSON instead of lines.
        progress: Told (bytes done, bytes in all).
        write: Takes each line of output.

    Returns:
        The certificate; None for a dry run.

    Raises:
        CertificateError: The result differs from base plus adapter.
        RecipeError: The arguments contradict each other.
    """
    from alignflow.merging.export import check_export, demand_room, export_model

    if export:
        check_export(export, llama_cpp)
    steps = [
        first_step(adapter, combine or []),
        *(AdapterStep(resolve(str(p))) for p in then or []),
    ]
    if qlora_base is None and any(trained_on_nf4(path) for path, _ in steps[0].members):
        qlora_base = "dequantized"
    options = MergeOptions(
        dtype=dtype,
        quantization="nf4" if qlora_base else None,
        qlora_base=qlora_base or "dequantized",
        verify=verify,
        base_source=base,
    )
    directory = resolve(base)
    if export == "nf4":
        demand_room(directory)
    if dry_run:
        write(_dry(plan(directory, steps, options).describe(), json))
        return None
    certificate = merge(directory, steps, out, options, progress)
    write(_lines(certificate, out, json))
    if certificate.status == "failed":
        raise CertificateError(
            f"{out}: the merged model differs from base plus adapter: {_figures(certificate)}. "
            "Merge in a wider type (--dtype float32), or look at the adapter."
        )
    if export:
        write(export_model(out, export, llama_cpp))
    return certificate


def first_step(adapter: str, combine: list[str]) -> AdapterStep:
    """The first merge: one adapter, or several with weights."""
    path, weight = weighted(adapter, default=1.0)
    others = tuple(weighted(text) for text in combine)
    return replace(AdapterStep(path, weight), combine=others)


def weighted(text: str, default: float | None = None) -> tuple[Path, float]:
    """Reads ADAPTER=WEIGHT.

    Raises:
        RecipeError: There is no number after the `=`.
    """
    name, found, number = text.rpartition("=")
    if not found and default is not None:
        return resolve(text), default
    try:
        return resolve(name), float(number)
    except ValueError as error:
        raise RecipeError(
            f"--with {text}: expected ADAPTER=WEIGHT with a number, as in runs/sft/adapter=0.5."
        ) from error


def resolve(name: str) -> Path:
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


def _dry(described: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json_format.dumps(described, indent=2)
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


def _lines(certificate: Certificate, out: Path, as_json: bool) -> str:
    if as_json:
        return certificate.model_dump_json(indent=2)
    lines = [f"{out}: {certificate.status}", certificate.arithmetic]
    if certificate.figures:
        lines.append(_figures(certificate))
    return "\n".join([*lines, *certificate.serve.values()])


def _figures(certificate: Certificate) -> str:
    found = certificate.figures
    if found is None or not (found.finite and certificate.finite):
        return "a weight or a logit is not finite"
    return (
        f"KL {found.kl:.3g} nats per token (limit {certificate.limits.max_kl:g}), most likely "
        f"token equal in {found.top1_agreement:.2%} of {found.tokens} "
        f"(limit {certificate.limits.min_top1_agreement:.2%}), largest difference of a "
        f"log-probability {found.max_logp_difference:.3g}"
    )
