"""Embedding and head, which may be one tensor and must not stay one where an adapter parts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from alignflow.errors import ArtifactError
from alignflow.merging.planning import names
from alignflow.merging.planning.adapter import Adapter, Factors
from alignflow.merging.planning.deltas import add_delta
from alignflow.merging.planning.draft import Draft
from alignflow.merging.planning.merge_plan import PutRows
from alignflow.models import Located, same_bytes


def embedding_place(draft: Draft, name: str) -> Literal["embedding", "head"] | None:
    """Which of the two a tensor's name means."""
    if draft.embedding and names.find(name, draft.tensors) == draft.embedding:
        return "embedding"
    return "head" if name in names.HEADS else None


def apply_embeddings(draft: Draft, adapter: Adapter) -> None:
    by_place: dict[str, list[Factors]] = {"embedding": [], "head": []}
    replaced: dict[str, Located] = {}
    for factors in adapter.factors:
        if place := embedding_place(draft, f"{factors.module}.weight"):
            by_place[place].append(factors)
    for name, source in adapter.replaced.items():
        if place := embedding_place(draft, name):
            replaced[place] = source
    _check_replaced_embeddings(draft, adapter, replaced)
    separate = _parted(adapter, by_place, replaced)
    if draft.tied and (separate or by_place["head"] or replaced):
        if adapter.config.get("ensure_weight_tying"):
            raise ArtifactError(
                f"{adapter.path}: ensure_weight_tying trains a tied embedding, which cannot be "
                "merged here. Merge it with PEFT's merge_and_unload."
            )
        if draft.head is not None and draft.head in draft.tensors:
            raise ArtifactError(
                f"{draft.base}: config.json ties the embeddings, but the files also hold "
                f"{draft.head}. Load and save the base once with Transformers, then merge."
            )
    if draft.tied and separate:
        draft.untie(head_name(draft, by_place["head"], adapter))
    _write_embeddings(draft, adapter, by_place, replaced)


def _parted(
    adapter: Adapter, by_place: Mapping[str, list[Factors]], replaced: Mapping[str, Located]
) -> bool:
    """Whether embedding and head differ after this adapter, if they were one before."""
    if by_place["embedding"] or by_place["head"]:
        return True
    if not replaced:
        return False
    if len(replaced) == 2:
        return not same_bytes(replaced["embedding"], replaced["head"])
    return _saved(adapter, next(iter(replaced.values())))


def _saved(adapter: Adapter, tensor: Located) -> bool:
    """Whether a tensor is of a module that was trained as a whole."""
    leaves = [name.rpartition(".")[2] for name in adapter.config.get("modules_to_save") or ()]
    return any(f".{leaf}." in f".{tensor.name}" for leaf in leaves)


def _write_embeddings(
    draft: Draft,
    adapter: Adapter,
    by_place: Mapping[str, list[Factors]],
    replaced: Mapping[str, Located],
) -> None:
    places = {"embedding": draft.embedding, "head": None if draft.tied else draft.head}
    for place, name in places.items():
        source = replaced.get(place)
        if source is None and place == "embedding" and draft.tied:
            source = replaced.get("head")
        if source is None and place == "head" and draft.untied and "embedding" in replaced:
            only = replaced["embedding"]
            source = None if _saved(adapter, only) else only
        if name is not None and source is not None:
            draft.put(name, source)
    for module, (values, indices) in adapter.tokens.items():
        if draft.tied and embedding_place(draft, f"{module}.weight") == "head":
            continue  # the embedding's, written once more
        _put_tokens(draft, adapter, module, values, indices)
    for place, name in places.items():
        for factors in by_place[place]:
            if name is None:
                raise ArtifactError(
                    f"{adapter.path}: {factors.a.name} adapts {factors.module}, which the base in "
                    f"{draft.base} does not have. The adapter belongs to another model."
                )
            add_delta(draft, adapter, name, factors)


def _put_tokens(
    draft: Draft, adapter: Adapter, module: str, values: Located, indices: tuple[int, ...]
) -> None:
    name = names.find(f"{module}.weight", draft.tensors)
    if name is None:
        raise ArtifactError(
            f"{adapter.path}: {values.name} trains tokens of {module}, which {draft.base} does "
            "not have. The adapter belongs to another model."
        )
    shape = draft.tensors[name].shape
    if shape[1] != values.shape[1] or max(indices, default=0) >= shape[0]:
        raise ArtifactError(
            f"{adapter.path}: {values.name} has rows of {values.shape[1]} for tokens up to "
            f"{max(indices, default=0)}, the base's {name} is {shape}. Resize its vocabulary first."
        )
    draft.add(name, PutRows(values, indices))
    if name == draft.embedding and draft.untied and draft.head:
        draft.add(draft.head, PutRows(values, indices))


def _check_replaced_embeddings(
    draft: Draft, adapter: Adapter, replaced: Mapping[str, Located]
) -> None:
    for place, source in replaced.items():
        name = draft.embedding if place == "embedding" or draft.tied else draft.head
        if name is None or draft.tensors[name].shape[1] != source.shape[1]:
            shape = draft.tensors[name].shape if name else "no such tensor"
            raise ArtifactError(
                f"{adapter.path}: {source.name} has shape {source.shape}, the base has {shape}. "
                "The adapter belongs to another model."
            )
        if draft.tensors[name].shape != source.shape:
            rows = {s.shape[0] for s in replaced.values()}
            if (not draft.tied and len(replaced) < 2) or len(rows) > 1:
                raise ArtifactError(
                    f"{adapter.path}: {source.name} resizes the vocabulary from "
                    f"{draft.tensors[name].shape[0]} to {source.shape[0]} rows, but embedding and "
                    "head are not both resized alike in the adapter. Save it with "
                    "save_embedding_layers=True."
                )


def head_name(draft: Draft, head: list[Factors], adapter: Adapter) -> str:
    if head:
        return f"{head[0].module}.weight"
    if draft.config.get("model_type") == "gpt_neox":
        return "embed_out.weight"
    architecture = (draft.config.get("architectures") or [""])[0]
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ArtifactError(
            f"{adapter.path} parts the embedding from the head it is tied to, and the name of a "
            f"{architecture or 'nameless architecture'}'s head is not known. Save the base with "
            "tie_word_embeddings false first."
        )
    return "lm_head.weight"
