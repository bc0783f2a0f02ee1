"""Whether adapters that are yet to be trained on a base could be merged into it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from alignflow.errors import ArtifactError
from alignflow.merging.merge_plan import MergePlan
from alignflow.merging.names import CONV1D_TYPES
from alignflow.merging.options import MergeOptions
from alignflow.merging.planning import model_config, plan
from alignflow.models.headers import FLOATS


def check_base(base: Path, targets: Collection[str], options: MergeOptions) -> MergePlan:
    """Plans the merge of nothing, and looks at what adapters would change.

    Args:
        base: Directory of the base model.
        targets: Last names of the layers that will have adapters.
        options: How the merge will be done.

    Returns:
        The plan, for its size.

    Raises:
        ArtifactError: The base is damaged or quantized, or a layer could not be merged: it is named.
    """
    planned = plan(base, [], MergeOptions(dtype=options.dtype))
    for tensor in (tensor for shard in planned.shards for tensor in shard.tensors):
        layer = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if layer in targets and tensor.source.dtype not in FLOATS:
            raise ArtifactError(
                f"{tensor.source.path}: tensor {tensor.name} has type {tensor.source.dtype}, an "
                f"adapter can only be merged into {', '.join(FLOATS)}. Take the unquantized model."
            )
    kind = model_config(base).get("model_type")
    dequantized = options.quantization is not None and options.qlora_base == "dequantized"
    if dequantized and kind in CONV1D_TYPES:
        raise ArtifactError(
            f"{base}: a {kind} has Conv1D layers, whose NF4 values are not reproduced here. Set "
            "merge.qlora_base to original, or tuning.mode to lora."
        )
    return planned
