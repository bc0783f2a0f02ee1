"""A merge as a person asks for it: models by directory or Hub id, refused where the result differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from alignflow.data import gguf_base
from alignflow.errors import CertificateError, RecipeError
from alignflow.merging.certificate import Certificate
from alignflow.merging.planning import AdapterStep, MergeOptions, trained_on_nf4
from alignflow.recipe import ModelSource, is_gguf, resolve_base_model
from alignflow.settings import resolve_home


class MergeRequest(NamedTuple):
    """What `merge` and `plan` take."""

    base: Path
    steps: list[AdapterStep]
    options: MergeOptions


def merge_request(
    base: str,
    adapters: Sequence[tuple[str, float]],
    then: Sequence[str] = (),
    *,
    qlora_base: Literal["dequantized", "original"] | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    verify: bool = True,
) -> MergeRequest:
    """Finds the models that are named by directories or Hub ids.

    The deltas of `adapters` are added, each times its weight; those in `then` follow, each trained
    on the preceding result. Without `qlora_base` an adapter is merged into dequantized weights if
    its base_model.json says that it was trained on NF4; any other is taken not to have been.

    Raises:
        RecipeError: A name is neither a directory nor a snapshot that can be had.
    """
    (path, weight), *others = [(_directory(name), weight) for name, weight in adapters]
    steps = [AdapterStep(path, weight, tuple(others))]
    steps += [AdapterStep(_directory(name)) for name in then]
    if qlora_base is None and any(trained_on_nf4(member) for member, _ in steps[0].members):
        qlora_base = "dequantized"
    options = MergeOptions(
        dtype=dtype,
        quantization="nf4" if qlora_base else None,
        qlora_base=qlora_base or "dequantized",
        verify=verify,
        base_source=base,
    )
    return MergeRequest(_directory(base), steps, options)


def demand_passed(certificate: Certificate, out: Path) -> None:
    """Refuses a merge whose certificate failed.

    Raises:
        CertificateError: The result differs from base plus adapter.
    """
    if certificate.status == "failed":
        raise CertificateError(
            f"{out}: the merged model differs from base plus adapter: {certificate.in_words()}. "
            "Merge in a wider type (--dtype float32), or look at the adapter."
        )


def _directory(name: str) -> Path:
    """A local directory, or the snapshot of a Hub id on this disk, downloaded where allowed.

    Of a GGUF file it is the model made of it, in the home.
    """
    if is_gguf(name):
        digest, path = resolve_base_model(ModelSource(source=name), "BASE")
        return gguf_base(Path(str(path)), digest, resolve_home(None), "BASE")
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
