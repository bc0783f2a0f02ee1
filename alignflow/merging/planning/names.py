"""Which tensor of a checkpoint a module of the loaded model is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
CONV1D_LEAVES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Modules whose weight lies as (in, out), in models of these types (Transformers 5)."""
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
OUTERMOST = ("model", "backbone")
"""What the whole model is called; newer code may call it otherwise than the checkpoint does."""
EXPERT_PARTS = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}
"""Fused parameter to the tensors that hold it on disk, expert by expert, in their order."""


def find(name: str, known: Iterable[str] | Mapping[str, Any]) -> str | None:
    """The tensor that `name` of the loaded model has in the checkpoint.

    A checkpoint may lack the outermost prefix (`transformer.h.0`, saved as `h.0`), have it where the
    module path has none, have another (`backbone.layers.0`), keep an older name of the
    mixture-of-experts block, or know nothing of a module that newer code puts around others
    (`self_attn.forget_gate.f_a_proj`, saved as `self_attn.f_a_proj`).
    """
    return next((spelled for spelled in _spellings(name) if spelled in known), None)


def _spellings(name: str) -> Iterable[str]:
    for spelled in (name, name.replace(".mlp.", ".block_sparse_moe.")):
        inner = spelled.partition(".")[2]
        yield from (spelled, inner)
        yield from (f"{outermost}.{path}" for path in (spelled, inner) for outermost in OUTERMOST)
    parts = name.split(".")
    for place in range(len(parts) - 3, 0, -1):
        yield ".".join([*parts[:place], *parts[place + 1 :]])


def is_conv1d(model_type: str | None, module: str) -> bool:
    """Whether a module's weight lies as (in, out)."""
    return model_type in CONV1D_TYPES and module.rpartition(".")[2] in CONV1D_LEAVES


def input_embedding(known: Iterable[str]) -> str | None:
    """The tensor of the input embedding: of several, the one with the shortest path."""
    endings = tuple(f".{leaf}.weight" for leaf in EMBEDDINGS)
    embeddings = [name for name in known if f".{name}".endswith(endings)]
    return min(embeddings, key=lambda name: (name.count("."), name), default=None)


def output_head(known: Mapping[str, Any]) -> str | None:
    """The tensor of the language model's head, where the checkpoint has one."""
    return next((name for name in HEADS if name in known), None)


def experts_on_disk(
    module: str, parameter: str, known: Mapping[str, Any]
) -> list[tuple[str, ...]] | None:
    """Per expert, the tensors that hold its part of a fused parameter; None where there are none."""
    for prefix in (module, module.replace(".mlp.", ".block_sparse_moe.")):
        for leaves in EXPERT_PARTS.get(parameter, ()):
            pattern = re.compile(re.escape(prefix) + rf"\.(\d+)\.{leaves[0]}\.weight$")
            numbers = sorted(int(expert[1]) for name in known if (expert := pattern.match(name)))
            if numbers and numbers == list(range(len(numbers))):
                return [tuple(f"{prefix}.{n}.{leaf}.weight" for leaf in leaves) for n in numbers]
    return None


def parts_on_disk(name: str, known: Mapping[str, Any]) -> list[str]:
    """Tensors of a checkpoint that hold a parameter: one, or those of its experts."""
    if (single := find(name, known)) is not None:
        return [single]
    module, _, leaf = name.rpartition(".")
    return [part for expert in experts_on_disk(module, leaf, known) or [] for part in expert]
