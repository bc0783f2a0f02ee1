"""Whether what a recipe trains could be merged at its end: asked of headers, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignflow.checking.architecture import Shape, resolved_targets
from alignflow.checking.findings import Finding, error
from alignflow.errors import AlignflowError
from alignflow.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def merge_findings(recipe: Recipe, base: Path, shape: Shape) -> list[Finding]:
    """Why the end of the recipe could not be merged into the base model in a directory."""
    if recipe.merge is None or recipe.tuning.mode == "full":
        return []
    from alignflow.merging import MergeOptions, check_base

    options = MergeOptions(
        dtype=recipe.merge.dtype,
        quantization="nf4" if recipe.tuning.mode == "qlora" else None,
        qlora_base=recipe.merge.qlora_base,
    )
    try:
        check_base(base, resolved_targets(shape, recipe.tuning), options)
    except AlignflowError as problem:
        return [error("merge", problem.message, type(problem))]
    return []


def adapter_merge_findings(base: Path, adapter: Path) -> Iterator[Finding]:
    """Whether the adapter that training starts from could be merged."""
    from alignflow.merging import AdapterStep, MergeOptions, plan

    try:
        plan(base, [AdapterStep(adapter)], MergeOptions())
    except AlignflowError as problem:
        yield error("merge", problem.message, type(problem))


def merged_bytes(recipe: Recipe, shape: Shape) -> int:
    """What the merged model takes on the disk; 0 where there is none."""
    if recipe.merge is None:
        return 0
    width = BYTES.get(recipe.merge.dtype)
    return shape.weight_bytes if width is None else shape.parameters * width
