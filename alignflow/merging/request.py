"""From names that a person gives to what is merged into what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from alignflow.errors import RecipeError
from alignflow.merging.planning.adapter import AdapterStep, trained_on_nf4
from alignflow.merging.planning.merge_plan import MergeOptions


class Request(NamedTuple):
    """Arguments of `plan`."""

    base: Path
    steps: list[AdapterStep]
    options: MergeOptions


def requested(
    base: str,
    adapter: tuple[str, float],
    *,
    combine: Sequence[tuple[str, float]] = (),
    then: Sequence[str] = (),
    qlora_base: Literal["dequantized", "original"] | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    verify: bool = True,
) -> Request:
    """What is to be merged, every name a directory on this disk.

    Args:
        base: Directory or Hub id.
        adapter: Directory or Hub id, and what its delta is scaled by.
        combine: Further adapters of the same base, whose deltas are added.
        then: Adapters merged after it, each trained on the preceding result.
        qlora_base: The weights that an adapter trained on NF4 is merged into; None is as its stage
            says.
        dtype: Of the merged weights; `auto` keeps the base's.
        verify: Compare logits of merged and base plus adapter.

    Raises:
        RecipeError: A name is neither a directory nor a Hub id that can be had.
    """
    first, *others = [(_directory(name), weight) for name, weight in (adapter, *combine)]
    steps = [AdapterStep(*first, tuple(others)), *(AdapterStep(_directory(name)) for name in then)]
    if qlora_base is None and any(trained_on_nf4(path) for path, _ in steps[0].members):
        qlora_base = "dequantized"
    options = MergeOptions(
        dtype=dtype,
        quantization="nf4" if qlora_base else None,
        qlora_base=qlora_base or "dequantized",
        verify=verify,
        base_source=base,
    )
    return Request(_directory(base), steps, options)


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
