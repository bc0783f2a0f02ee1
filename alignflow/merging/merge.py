"""Base and adapter in one: load, merge, save, reload, compare.

An adapter trained on NF4 weights is merged into what it was trained on, dequantized to fp32 and
cast last, unless the original weights are asked for. Full tuning passes through, verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alignflow.errors import ArtifactError
from alignflow.files import hash_files
from alignflow.merging.certificate import Certificate, Limits, compare, logits_of, status_of
from alignflow.modeling import BaseModel, load_adapter, load_base, load_merged, load_policy

Progress = Callable[[int, int], None]
STEPS = 4


def merge(
    base: BaseModel,
    trained: Path,
    tokenizer: Path,
    out: Path,
    *,
    probes: list[list[int]],
    quantization: str | None,
    qlora_base: str = "dequantized",
    dtype: str = "auto",
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Writes the merged model to `out`, with its certificate.

    Args:
        base: What the adapter was trained on.
        trained: A stage's directory, with `adapter/` or `model/` inside.
        tokenizer: Directory of the tokenizer with the chat template in force.
        out: Directory that is made; what stands there is replaced.
        probes: Token ids on which merged and adapter are compared, at least one.
        quantization: `nf4` if the adapter was trained on 4-bit weights, else None.
        qlora_base: For `nf4`: `dequantized` or `original`.
        dtype: Of the merged weights; `auto` keeps the base's.
        limits: What the certificate may not exceed.
        progress: Told (done, total) of four steps.

    Returns:
        The certificate, passed or failed; the caller decides what a failed one means.

    Raises:
        ArtifactError: There is neither adapter nor model, or it belongs to another base.
    """
    tell = progress or _silent
    limits = limits or Limits()
    shutil.rmtree(out, ignore_errors=True)
    adapter = trained / "adapter"
    tell(0, STEPS)
    expected = logits_of(_trained(base, trained, quantization), probes)
    tell(1, STEPS)
    kind = getattr(torch, _dtype(base, dtype))
    if adapter.is_dir():
        merged, arithmetic = _merged(base, adapter, quantization, qlora_base)
        merged.to(kind).save_pretrained(str(out), safe_serialization=True)
        del merged
    elif (trained / "model").is_dir():
        arithmetic = "none: the whole model was trained"
        model = load_policy(base, trained, dtype="float32", quantization=None)
        model.to(kind).save_pretrained(str(out), safe_serialization=True)
    else:
        raise ArtifactError(f"{trained} holds neither adapter/ nor model/. Run its stage again.")
    tell(2, STEPS)
    for path in tokenizer.iterdir():
        shutil.copyfile(path, out / path.name)
    actual = logits_of(load_merged(out), probes)
    tell(3, STEPS)
    figures = compare(expected, actual, probes)
    certificate = Certificate(
        status=status_of(figures, limits),
        base={"source": base.source, "revision": base.revision, "digest": base.digest},
        adapter={"files": hash_files(adapter)} if adapter.is_dir() else None,
        arithmetic=arithmetic,
        dtype=_dtype(base, dtype),
        figures=figures,
        limits=limits,
        files=hash_files(out),
    )
    certificate.write(out)
    tell(STEPS, STEPS)
    return certificate


def _silent(_done: int, _total: int) -> None:
    pass


def _dtype(base: BaseModel, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    return base.torch_dtype or "float32"


def _trained(base: BaseModel, trained: Path, quantization: str | None) -> Any:
    """Base plus adapter as it was trained and judged, computing in fp32."""
    return load_policy(base, trained, dtype="float32", quantization=quantization)


def _merged(
    base: BaseModel, adapter: Path, quantization: str | None, qlora_base: str
) -> tuple[Any, str]:
    """The merged model in fp32, and a sentence on the arithmetic."""
    dequantized = quantization is not None and qlora_base == "dequantized"
    model = load_base(base, dtype="float32", quantization=quantization if dequantized else None)
    if dequantized:
        model = model.dequantize().to(torch.float32)
    merged = load_adapter(model, adapter, base).merge_and_unload()
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(merged.config, name):
            delattr(merged.config, name)
    origin = "NF4 weights dequantized to float32" if dequantized else "original weights in float32"
    return merged, f"{origin}, adapter added in float32, cast last"
