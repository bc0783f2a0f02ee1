"""The merged model while it is being planned: its tensors, and what is done to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.merging import names
from alignflow.merging.merge_plan import ShardPlan
from alignflow.merging.operations import Dequantized, Round, TensorPlan
from alignflow.merging.options import MergeOptions
from alignflow.models.headers import FLOATS, Located

CODES = {name: code for code, name in FLOATS.items()}


@dataclass
class Draft:
    """The merged model as far as it is planned."""

    base: Path
    config: Mapping[str, Any]
    originals: Mapping[str, Located]
    options: MergeOptions
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    """New tensor to the one it stands behind."""
    tied: bool = False
    untied: bool = False
    notes: list[str] = field(default_factory=list)
    embedding: str | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        for name, located in self.originals.items():
            work, dtype = self._types(located)
            self.tensors[name] = TensorPlan(name, located, work, dtype)
        self.embedding = names.input_embedding(self.originals)
        self.head = names.output_head(self.originals)
        tie = self.config.get("tie_word_embeddings")
        self.tied = (self.head is None) if tie is None else bool(tie)

    def _types(self, located: Located) -> tuple[str, str]:
        if located.dtype not in FLOATS:
            return located.dtype, located.dtype
        auto = self.options.dtype == "auto"
        target = located.dtype if auto else CODES[self.options.dtype]
        dequantized = self.options.quantization and self.options.qlora_base == "dequantized"
        wide = dequantized or (target != located.dtype)
        return ("F32" if wide else located.dtype), target

    def add(self, name: str, operation: Any) -> None:
        tensor = self.tensors[name]
        if tensor.source.dtype not in FLOATS:
            raise ArtifactError(
                f"{tensor.source.path}: tensor {name} has type {tensor.source.dtype}, an adapter "
                f"can only be merged into {', '.join(FLOATS)}. Merge into the unquantized model."
            )
        self.tensors[name] = replace(tensor, operations=(*tensor.operations, operation))

    def put(self, name: str, source: Located) -> None:
        """Replaces a tensor and all that was done to it."""
        self.tensors[name] = replace(self.tensors[name], source=source, operations=())

    def dequantize(self, linear: list[str]) -> None:
        for name in linear:
            self.add(name, Dequantized())

    def round_all(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.operations and tensor.work != tensor.dtype:
                self.add(name, Round(tensor.dtype))

    def untie(self, head: str) -> None:
        """Gives the head a tensor of its own, equal to the embedding so far."""
        if self.embedding is None:
            raise ArtifactError(
                f"{self.base}: the head is tied to an input embedding that was not found, so it "
                "cannot be given weights of its own. Save the base with tie_word_embeddings false."
            )
        self.tensors[head] = replace(self.tensors[self.embedding], name=head)
        self.added[head] = self.embedding
        self.head, self.tied, self.untied = head, False, True

    def shards(self, files: Mapping[str, list[Located]]) -> tuple[ShardPlan, ...]:
        behind = {anchor: name for name, anchor in self.added.items()}
        plans = []
        for file, tensors in files.items():
            kept: list[TensorPlan] = []
            for tensor in tensors:
                kept.append(self.tensors[tensor.name])
                if tensor.name in behind:
                    kept.append(self.tensors[behind[tensor.name]])
            plans.append(ShardPlan(file, tuple(kept)))
        return tuple(plans)

    def config_changes(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.untied:
            changes["tie_word_embeddings"] = False
        if self.options.dtype != "auto":
            changes["dtype"] = self.options.dtype
        if self.embedding and self.config.get("vocab_size"):
            rows = self.tensors[self.embedding].shape[0]
            if rows != self.originals[self.embedding].shape[0]:
                changes["vocab_size"] = rows
        return changes
