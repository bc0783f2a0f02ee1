"""The merged model while it is being planned: its tensors, and what is done to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.merging.planning import names
from alignflow.merging.planning.merge_plan import MergeOptions, Round, ShardPlan, TensorPlan
from alignflow.models import FLOATS, Located

CODES = {name: code for code, name in FLOATS.items()}


def demand_float(tensor: TensorPlan, advice: str) -> None:
    """Refuses a tensor that no adapter can be merged into.

    Raises:
        ArtifactError: Its numbers are of another type than those that are merged.
    """
    if tensor.source.dtype not in FLOATS:
        raise ArtifactError(
            f"{tensor.source.path}: tensor {tensor.name} has type {tensor.source.dtype}, an adapter "
            f"can only be merged into {', '.join(FLOATS)}. {advice}"
        )


@dataclass
class Draft:
    """The merged model as far as it is planned."""

    base: Path
    config: Mapping[str, Any]
    originals: Mapping[str, Located]
    options: MergeOptions
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    _added: dict[str, str] = field(default_factory=dict)
    """New tensor to the one it stands behind."""
    tied: bool = False
    untied: bool = False
    embedding: str | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        for name, located in self.originals.items():
            self.tensors[name] = TensorPlan(name, located, *self._types(located))
        self.embedding = names.input_embedding(self.originals)
        self.head = names.output_head(self.originals)
        tie = self.config.get("tie_word_embeddings")
        self.tied = (self.head is None) if tie is None else bool(tie)

    def _types(self, located: Located) -> tuple[str, str]:
        if located.dtype not in FLOATS:
            return located.dtype, located.dtype
        auto = self.options.dtype == "auto"
        target = located.dtype if auto else CODES[self.options.dtype]
        wide = self.options.dequantizes or target != located.dtype
        return ("F32" if wide else located.dtype), target

    def add(self, name: str, operation: Any) -> None:
        tensor = self.tensors[name]
        demand_float(tensor, "Merge into the unquantized model.")
        self.tensors[name] = replace(tensor, operations=(*tensor.operations, operation))

    def put(self, name: str, source: Located) -> None:
        """Replaces a tensor and all that was done to it."""
        self.tensors[name] = replace(self.tensors[name], source=source, operations=())

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
        self._added[head] = self.embedding
        self.head, self.tied, self.untied = head, False, True

    def shards(self, files: Mapping[str, list[Located]]) -> tuple[ShardPlan, ...]:
        """The tensors of each file in their order, a new one behind the one it stands behind."""
        behind = {anchor: name for name, anchor in self._added.items()}
        ordered = {
            file: [name for t in tensors for name in (t.name, behind.get(t.name)) if name]
            for file, tensors in files.items()
        }
        return tuple(
            ShardPlan(file, tuple(self.tensors[name] for name in chosen))
            for file, chosen in ordered.items()
        )

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
