"""All that a merge will do, for a person, a program, and the merge itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.merging.adapter import AdapterStep
from alignflow.merging.operations import TensorPlan
from alignflow.models.headers import DTYPE_BYTES, FLOATS


@dataclass(frozen=True)
class ShardPlan:
    """One file of the merged model."""

    file: str
    tensors: tuple[TensorPlan, ...]

    @property
    def bytes(self) -> int:
        return sum(math.prod(t.shape) * DTYPE_BYTES[t.dtype] for t in self.tensors)


@dataclass(frozen=True)
class MergePlan:
    """All that a merge will do."""

    base: Path
    steps: tuple[AdapterStep, ...]
    adapters: tuple[dict[str, Any], ...]
    """Per adapter: path, sha256 of weights and config, weight, step."""
    shards: tuple[ShardPlan, ...]
    config_changes: Mapping[str, Any]
    arithmetic: str
    digest: str
    """Changes with anything that changes a byte of the result."""
    header_digest: str
    """Of the base's config and headers."""
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def merged(self) -> list[TensorPlan]:
        """Tensors that an adapter changes."""
        return [t for s in self.shards for t in s.tensors if t.operations or not _of_base(t, self)]

    def describe(self) -> dict[str, Any]:
        """The plan for a person or a program to read."""
        return {
            "base": str(self.base),
            "adapters": list(self.adapters),
            "arithmetic": self.arithmetic,
            "bytes": self.bytes,
            "files": len(self.shards),
            "tensors": sum(len(shard.tensors) for shard in self.shards),
            "config": dict(self.config_changes),
            "notes": list(self.notes),
            "merged": [
                {
                    "tensor": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": FLOATS.get(tensor.dtype, tensor.dtype),
                    "by": [type(operation).__name__ for operation in tensor.operations]
                    or ["Replaced"],
                }
                for tensor in self.merged
            ],
        }


def _of_base(tensor: TensorPlan, plan: MergePlan) -> bool:
    return tensor.source.path.parent == plan.base
