"""What a merge is asked to do, and all that it will do: tensor by tensor, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignflow.merging.certificate import Limits
from alignflow.merging.planning.adapter import AdapterStep, Factors
from alignflow.models import DTYPE_BYTES, FLOATS, Located


@dataclass(frozen=True)
class MergeOptions:
    """How to merge; every default is right for most."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the merged weights. `auto` keeps each tensor's; others merge in fp32, cast last."""
    quantization: Literal["nf4"] | None = None
    """What the base was quantized to while the adapter was trained."""
    qlora_base: Literal["dequantized", "original"] = "dequantized"
    """For `nf4`: merge into what the adapter was trained on, or into the original weights."""
    verify: bool = True
    """Compare logits of merged and base plus adapter. Without, the certificate is `unverified`."""
    probes: tuple[tuple[int, ...] | str, ...] = ()
    """Token ids or texts that the logits are compared on. None: texts of our own."""
    probe_quantization: bool = True
    """For `nf4`: compare with the adapter on the quantized base, as it was trained."""
    limits: Limits = field(default_factory=Limits)
    """What the certificate's figures may not exceed."""
    base_digest: str | None = None
    """Digest of the base where the caller knows it. None: hashed while it is read."""
    base_source: str | None = None
    """What the certificate calls the base. None: its path."""
    tokenizer: Path | None = None
    """Directory of the tokenizer to put beside the model. None: the adapter's, else the base's."""
    final: Path | None = None
    """Where the result will stand when all is done, for the lines that serve it. None: as merged."""
    replace: bool = False
    """Whether a finished merge of something else in the result's directory is replaced."""
    block_bytes: int = 4 * 1024 * 1024
    """Bytes of fp32 computed at a time where row blocks are exact. Never changes the result."""

    @property
    def dequantizes(self) -> bool:
        """Whether adapters are merged into the NF4 values that they were trained on."""
        return self.quantization is not None and self.qlora_base == "dequantized"

    @property
    def compared_quantization(self) -> str | None:
        """What the base of the comparison is quantized to."""
        return self.quantization if self.probe_quantization else None


Layout = Literal["linear", "conv1d", "embedding"]
"""How a weight lies: (out, in), (in, out), or (tokens, features)."""


@dataclass(frozen=True)
class AddDelta:
    """W += scaling · B @ A, or the sum of several weighted ones."""

    members: tuple[tuple[Factors, float], ...]
    layout: Layout
    weighted: bool = False


@dataclass(frozen=True)
class AddDora:
    """W = magnitude · (W + delta) / norm(W + delta)."""

    factors: Factors
    layout: Layout


@dataclass(frozen=True)
class AddFused:
    """Adds one expert's part, or all, of a fused parameter's delta."""

    factors: Factors
    experts: int
    swapped: bool
    """The parameter lies as (experts, out, in); else (experts, in, out)."""
    expert: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class AddBias:
    """bias += scaling · lora_B.bias."""

    factors: Factors


@dataclass(frozen=True)
class PutRows:
    """Rows of an embedding take the trained tokens' values."""

    values: Located
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """The result of one adapter was saved in this type before the next was trained on it."""

    dtype: str


@dataclass(frozen=True)
class Dequantized:
    """W as the adapter saw it: quantized to NF4 and back."""


Operation = AddDelta | AddDora | AddFused | AddBias | PutRows | Round | Dequantized


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the merged model."""

    name: str
    source: Located
    """The base's tensor, or the adapter's that takes its place."""
    work: str
    """Header's word for the type that is merged in."""
    dtype: str
    """Header's word for the type that is written."""
    operations: tuple[Operation, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def copied(self) -> bool:
        """Whether the bytes are the source's."""
        return not self.operations and self.source.dtype == self.work == self.dtype

    @property
    def bytes(self) -> int:
        """What is written."""
        return self.source.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class ShardPlan:
    """One file of the merged model."""

    file: str
    tensors: tuple[TensorPlan, ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


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

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def tensors(self) -> list[TensorPlan]:
        """Of all shards."""
        return [tensor for shard in self.shards for tensor in shard.tensors]

    @property
    def merged(self) -> list[TensorPlan]:
        """Tensors that an adapter changes."""
        return [t for t in self.tensors if t.operations or t.source.path.parent != self.base]

    def describe(self) -> dict[str, Any]:
        """The plan for a person or a program to read."""
        return {
            "base": str(self.base),
            "adapters": list(self.adapters),
            "arithmetic": self.arithmetic,
            "bytes": self.bytes,
            "files": len(self.shards),
            "tensors": len(self.tensors),
            "config": dict(self.config_changes),
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
