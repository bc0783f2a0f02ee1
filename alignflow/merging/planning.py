"""What will be merged into what, from headers alone: nothing is loaded, no torch is imported.

Whatever cannot be merged is refused here, before the first weight is read, by the tensor's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignflow.errors import ArtifactError, RecipeError
from alignflow.files import digest_directory, digest_json, sha256_file
from alignflow.merging import names
from alignflow.merging.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    AdapterStep,
    Factors,
    read_adapter,
    with_rank,
)
from alignflow.merging.certificate import CERTIFICATE_FILE
from alignflow.merging.headers import DTYPE_BYTES, FLOATS, INDEX_FILE, Located, read_checkpoint
from alignflow.merging.operations import (
    AddBias,
    AddDelta,
    AddDora,
    AddFused,
    Dequantized,
    Layout,
    PutRows,
    Round,
    TensorPlan,
)

PLAN_VERSION = 1
CODES = {name: code for code, name in FLOATS.items()}


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
    max_kl: float = 1e-3
    """Certificate fails above this KL, nats per token, of merged against base plus adapter."""
    min_top1_agreement: float = 0.99
    """Certificate fails below this share of equal most likely tokens."""
    base_digest: str | None = None
    """Digest of the base where the caller knows it. None: hashed while it is read."""
    base_source: str | None = None
    """What the certificate calls the base. None: its path."""
    tokenizer: Path | None = None
    """Directory of the tokenizer to put beside the model. None: the adapter's, else the base's."""
    replace: bool = False
    """Whether a finished merge of something else in the result's directory is replaced."""
    block_bytes: int = 4 * 1024 * 1024
    """Bytes of fp32 computed at a time where row blocks are exact. Never changes the result."""


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


def plan(base: Path, adapters: list[AdapterStep], options: MergeOptions) -> MergePlan:
    """Plans a merge from headers and configs.

    Args:
        base: Directory of the base model.
        adapters: In the order they are merged; none passes the base through.
        options: How to merge.

    Raises:
        ArtifactError: Base or adapter is damaged, or a tensor cannot be merged: it is named.
        RecipeError: The options contradict each other.
    """
    files = read_checkpoint(base)
    config = _model_config(base)
    draft = _Draft(base, config, {t.name: t for ts in files.values() for t in ts}, options)
    records: list[dict[str, Any]] = []
    if options.quantization and options.qlora_base == "dequantized":
        if any(step.weighted for step in adapters[1:]) or len(adapters) > 1:
            raise RecipeError(
                "An adapter trained on NF4 is followed by another. Merge them one at a time: the "
                "second was trained on the first merge's result, quantized anew."
            )
        draft.dequantize(linear_weights(base, draft.tensors))
    for number, step in enumerate(adapters):
        members = [(read_adapter(path), weight) for path, weight in step.members]
        for adapter, _ in members:
            check_lineage(adapter, base, records, options)
        records += [_record(adapter, weight, number) for adapter, weight in members]
        if number:
            draft.round_all()
        _apply_step(draft, step, members)
    shards = draft.shards(files)
    header_digest = _header_digest(base, files)
    return MergePlan(
        base=base,
        steps=tuple(adapters),
        adapters=tuple(records),
        shards=shards,
        config_changes=draft.config_changes(),
        arithmetic=_arithmetic(adapters, options),
        digest=_digest(base, files, records, shards, draft.config_changes(), options.tokenizer),
        header_digest=header_digest,
        notes=tuple(draft.notes),
    )


@dataclass
class _Draft:
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


def _apply_step(draft: _Draft, step: AdapterStep, members: list[tuple[Adapter, float]]) -> None:
    if step.weighted:
        _apply_weighted(draft, members)
        return
    adapter = members[0][0]
    _apply_embeddings(draft, adapter)
    for name, source in adapter.replaced.items():
        if not _belongs_to_embedding(draft, name):
            _replace(draft, adapter, name, source)
    for factors in adapter.factors:
        if _embedding_module(draft, factors.module) is None:
            _apply_factors(draft, adapter, factors)


def _apply_factors(draft: _Draft, adapter: Adapter, factors: Factors) -> None:
    name = names.find(f"{factors.module}.weight", draft.tensors)
    if name is None:
        _apply_fused(draft, adapter, factors)
        return
    _add_delta(draft, adapter, name, factors)


def _add_delta(draft: _Draft, adapter: Adapter, name: str, factors: Factors) -> None:
    layout = _layout(draft, adapter, name, factors)
    if factors.magnitude is not None:
        draft.add(name, AddDora(factors, layout))
    else:
        draft.add(name, AddDelta(((factors, 1.0),), layout))
    if factors.bias is not None:
        bias = names.find(f"{factors.module}.bias", draft.tensors)
        if bias is None:
            raise ArtifactError(
                f"{adapter.path}: {factors.bias.name} is the bias of a LoRA factor, but the base "
                f"has no {factors.module}.bias to add it to. Train with lora_bias=False."
            )
        draft.add(bias, AddBias(factors))


def _layout(draft: _Draft, adapter: Adapter, name: str, factors: Factors) -> Layout:
    shape = draft.tensors[name].shape
    inputs, outputs = factors.a.shape[1], factors.b.shape[0]
    if factors.embedding:
        layout: Layout = "embedding"
        expected = (inputs, outputs)
    elif names.is_conv1d(draft.config.get("model_type"), factors.module):
        layout, expected = "conv1d", (inputs, outputs)
    else:
        layout, expected = "linear", (outputs, inputs)
    if shape != expected:
        raise ArtifactError(
            f"{adapter.path}: the factors of {factors.module} make a delta of shape {expected}, "
            f"the base's {name} has {shape}. The adapter belongs to another model, or to one with "
            "a resized vocabulary."
        )
    if layout == "linear" and adapter.config.get("fan_in_fan_out") and draft.config.get("auto_map"):
        raise ArtifactError(
            f"{adapter.path}: fan_in_fan_out is set and {draft.base} has code of its own, so it is "
            f"not known how {name} lies. Merge it with PEFT's merge_and_unload."
        )
    return layout


def _replace(draft: _Draft, adapter: Adapter, name: str, source: Located) -> None:
    found = names.find(name, draft.tensors)
    if found is None or draft.tensors[found].shape != source.shape:
        shape = draft.tensors[found].shape if found else "no such tensor"
        raise ArtifactError(
            f"{adapter.path}: {source.name} has shape {source.shape}, the base has {shape} for "
            f"{name}. The adapter belongs to another model or another head (a reward model's "
            "`score` is not part of a language model)."
        )
    draft.put(found, source)


def _embedding_module(draft: _Draft, module: str) -> Literal["embedding", "head"] | None:
    if draft.embedding and names.find(f"{module}.weight", draft.tensors) == draft.embedding:
        return "embedding"
    if names.is_head(module):
        return "head"
    return None


def _belongs_to_embedding(draft: _Draft, name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and _embedding_module(draft, module) is not None


def _apply_embeddings(draft: _Draft, adapter: Adapter) -> None:
    """Embedding and head together: they may be one tensor, and must not stay one if they part."""
    by_place: dict[str, list[Factors]] = {"embedding": [], "head": []}
    replaced: dict[str, Located] = {}
    for factors in adapter.factors:
        if place := _embedding_module(draft, factors.module):
            by_place[place].append(factors)
    for name, source in adapter.replaced.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and (place := _embedding_module(draft, module)):
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
        draft.untie(_head_name(draft, by_place["head"], adapter))
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
        return not _same_bytes(replaced["embedding"], replaced["head"])
    saved = [name.rpartition(".")[2] for name in adapter.saved_modules]
    only = next(iter(replaced.values()))
    return any(f".{name}." in f".{only.name}" for name in saved)


def _write_embeddings(
    draft: _Draft,
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
            saved = [leaf.rpartition(".")[2] for leaf in adapter.saved_modules]
            only = replaced["embedding"]
            trained = any(f".{leaf}." in f".{only.name}" for leaf in saved)
            source = None if trained else only
        if name is not None and source is not None:
            draft.put(name, source)
    for module, (values, indices) in adapter.tokens.items():
        _put_tokens(draft, adapter, module, values, indices)
    for place, name in places.items():
        for factors in by_place[place]:
            if name is None:
                raise ArtifactError(
                    f"{adapter.path}: {factors.a.name} adapts {factors.module}, which the base in "
                    f"{draft.base} does not have. The adapter belongs to another model."
                )
            _add_delta(draft, adapter, name, factors)


def _put_tokens(
    draft: _Draft, adapter: Adapter, module: str, values: Located, indices: tuple[int, ...]
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
    draft: _Draft, adapter: Adapter, replaced: Mapping[str, Located]
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


def _head_name(draft: _Draft, head: list[Factors], adapter: Adapter) -> str:
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


def _same_bytes(first: Located, second: Located) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    with first.path.open("rb") as one, second.path.open("rb") as two:
        one.seek(first.begin)
        two.seek(second.begin)
        left = first.bytes
        while left:
            size = min(left, 1 << 22)
            if one.read(size) != two.read(size):
                return False
            left -= size
    return True


def _apply_fused(draft: _Draft, adapter: Adapter, factors: Factors) -> None:
    module = factors.module
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    targets = adapter.config.get("target_parameters") or []
    leaves = sorted({target.rpartition(".")[2] for target in targets})
    shapes = []
    for leaf in leaves:
        if applied := _fused_parameter(draft, adapter, factors, module, leaf):
            return
        shapes.append(f"{leaf} {applied}")
    raise ArtifactError(
        f"{adapter.path}: {factors.a.name} with shape {factors.a.shape} adapts {factors.module}, "
        f"for which {draft.base} has no weight of that shape"
        + (f" (target_parameters {', '.join(leaves)})" if leaves else "")
        + ". The adapter belongs to another model, or to a layer that cannot be merged here."
    )


def _fused_parameter(
    draft: _Draft, adapter: Adapter, factors: Factors, module: str, leaf: str
) -> bool:
    """Adds a fused parameter's delta where the shapes fit; whether they did."""
    inputs, outputs = factors.a.shape[1], factors.b.shape[0]
    whole = names.find(f"{module}.{leaf}", draft.tensors)
    if whole is not None:
        shape = draft.tensors[whole].shape
        if len(shape) != 3 or {shape[1], shape[2]} != {inputs, outputs}:
            return False
        if inputs == outputs:
            raise ArtifactError(
                f"{adapter.path}: {whole} is square {shape}, so it is not known which side the "
                "factors belong to. Merge it with PEFT's merge_and_unload."
            )
        ranked = _ranked(adapter, factors, module, leaf, shape[0])
        draft.add(whole, AddFused(ranked, shape[0], swapped=shape[1] == outputs))
        return True
    experts = names.experts_on_disk(module, leaf, draft.tensors)
    if experts is None:
        return False
    heights = [draft.tensors[name].shape[0] for name in experts[0]]
    if sum(heights) != outputs or draft.tensors[experts[0][0]].shape[1] != inputs:
        return False
    ranked = _ranked(adapter, factors, module, leaf, len(experts))
    for number, parts in enumerate(experts):
        begin = 0
        for name, height in zip(parts, heights, strict=True):
            rows = (begin, begin + height)
            draft.add(name, AddFused(ranked, len(experts), True, number, rows))
            begin += height
    return True


def _ranked(adapter: Adapter, factors: Factors, module: str, leaf: str, experts: int) -> Factors:
    if factors.a.shape[0] % experts or factors.magnitude or factors.bias:
        raise ArtifactError(
            f"{adapter.path}: {factors.a.name} has {factors.a.shape[0]} rows for {experts} experts "
            f"of {module}.{leaf}; a whole rank per expert, without DoRA or bias, can be merged."
        )
    named = replace(factors, module=module)
    return with_rank(named, adapter.config, factors.a.shape[0] // experts)


def _apply_weighted(draft: _Draft, members: list[tuple[Adapter, float]]) -> None:
    together: dict[str, list[tuple[Factors, float]]] = {}
    for adapter, weight in members:
        if adapter.replaced or adapter.tokens:
            first = (
                next(iter(adapter.replaced.values()), None)
                or next(iter(adapter.tokens.values()))[0]
            )
            raise ArtifactError(
                f"{adapter.path}: {first.name} replaces weights; only low-rank deltas can be "
                "combined by weights. Merge this adapter alone."
            )
        for factors in adapter.factors:
            if factors.magnitude or factors.bias:
                raise ArtifactError(
                    f"{adapter.path}: {factors.module} has DoRA magnitudes or a bias; only plain "
                    "low-rank deltas can be combined by weights. Merge this adapter alone."
                )
            together.setdefault(factors.module, []).append((factors, weight))
    for module, parts in together.items():
        place = _embedding_module(draft, module)
        if place and draft.tied:
            draft.untie(_head_name(draft, [parts[0][0]] if place == "head" else [], members[0][0]))
        name = names.find(f"{module}.weight", draft.tensors)
        if name is None:
            raise ArtifactError(
                f"{members[0][0].path}: {module} adapts a fused or absent parameter; such deltas "
                "cannot be combined by weights. Merge this adapter alone."
            )
        for factors, _ in parts[1:]:
            _layout(draft, members[0][0], name, factors)
        layout = _layout(draft, members[0][0], name, parts[0][0])
        draft.add(name, AddDelta(tuple(parts), layout, weighted=True))


def check_lineage(
    adapter: Adapter, base: Path, before: list[dict[str, Any]], options: MergeOptions
) -> None:
    """Refuses an adapter that was trained on something else than it would be merged into.

    Raises:
        ArtifactError: Its recorded base is another one, or, after a first adapter, is not shown
            to be the preceding result.
    """
    note = adapter.path / "base_model.json"
    recorded = json.loads(note.read_text()).get("digest") if note.is_file() else None
    known = options.base_digest
    if not before:
        if recorded and known and recorded != known:
            raise ArtifactError(
                f"The adapter in {adapter.path} was trained on a base model with digest "
                f"{recorded[:12]}, this base in {base} has {known[:12]}. Use an adapter of this "
                "base."
            )
        named = _named_base(adapter)
        if named and named.resolve() != base.resolve() and (named / CERTIFICATE_FILE).is_file():
            raise ArtifactError(
                f"The adapter in {adapter.path} was trained on the merged model in {named}, not on "
                f"{base}. Merge it into {named}, or name the adapters before it first (--then)."
            )
        return
    named = _named_base(adapter)
    file = named / CERTIFICATE_FILE if named else None
    if file is None or not file.is_file():
        raise ArtifactError(
            f"The adapter in {adapter.path} records the base {named or 'nowhere'}, which holds no "
            f"{CERTIFICATE_FILE}, so it is not shown to be trained on the preceding result. An "
            "adapter that continues another is merged alone; else merge in two commands."
        )
    merged = [entry["sha256"] for entry in json.loads(file.read_text()).get("adapters", [])]
    if merged != [entry["sha256"] for entry in before]:
        raise ArtifactError(
            f"The adapter in {adapter.path} was trained on {named}, a merge of "
            f"{[digest[:12] for digest in merged]}; here it would follow "
            f"{[entry['sha256'][:12] for entry in before]}. Give the adapters in their order."
        )


def _named_base(adapter: Adapter) -> Path | None:
    name = adapter.config.get("base_model_name_or_path")
    if not name:
        return None
    path = Path(name)
    return path if path.is_dir() else None


def linear_weights(base: Path, tensors: Mapping[str, TensorPlan]) -> list[str]:
    """Weights of linear layers but the head, which 4-bit loading quantizes. Imports Transformers."""
    from alignflow.merging.modules import quantized_modules

    found = []
    for module in quantized_modules(base):
        name = names.find(f"{module}.weight", tensors)
        if name is None:
            raise ArtifactError(
                f"{base}: no tensor {module}.weight in the files, so its 4-bit values cannot be "
                "reproduced. Merge with --qlora-base original."
            )
        found.append(name)
    return found


def _model_config(base: Path) -> Mapping[str, Any]:
    file = base / "config.json"
    if not file.is_file():
        raise ArtifactError(f"{base} holds no model (no config.json). Name a model's directory.")
    config = json.loads(file.read_text())
    if quantized := config.get("quantization_config"):
        raise ArtifactError(
            f"{file}: the base is quantized ({quantized.get('quant_method', 'unknown method')}). "
            "Merging into quantized weights ruins them: name the unquantized base, with "
            "--qlora-base dequantized for an adapter trained on NF4."
        )
    return config


def _record(adapter: Adapter, weight: float, step: int) -> dict[str, Any]:
    return {
        "path": str(adapter.path),
        "sha256": sha256_file(adapter.path / WEIGHTS_FILE),
        "config_sha256": sha256_file(adapter.path / CONFIG_FILE),
        "weight": weight,
        "step": step,
    }


def _arithmetic(adapters: list[AdapterStep], options: MergeOptions) -> str:
    if not adapters:
        return "none: the weights pass through"
    if options.quantization and options.qlora_base == "dequantized":
        return "NF4 weights dequantized to float32, adapter added in float32, cast last"
    if options.quantization:
        origin = "original weights (not the NF4 the adapter was trained on)"
    else:
        origin = "base weights"
    if options.dtype == "auto":
        return f"{origin}, delta in float32 added in the weight's own type, as PEFT does"
    return f"{origin} in float32, adapter added in float32, cast last"


def _header_digest(base: Path, files: Mapping[str, list[Located]]) -> str:
    listed = [[t.name, t.dtype, list(t.shape)] for ts in files.values() for t in ts]
    return digest_json([sorted(listed), sha256_file(base / "config.json")])


def _digest(
    base: Path,
    files: Mapping[str, list[Located]],
    records: list[dict[str, Any]],
    shards: tuple[ShardPlan, ...],
    changes: Mapping[str, Any],
    tokenizer: Path | None,
) -> str:
    stamps = {
        name: [(stat := (base / name).stat()).st_size, stat.st_mtime_ns]
        for name in (*files, *(n for n in ("config.json", INDEX_FILE) if (base / n).is_file()))
    }
    listed = [[t.name, t.work, t.dtype, repr(t.operations)] for s in shards for t in s.tensors]
    beside = digest_directory(tokenizer) if tokenizer else None
    return digest_json([PLAN_VERSION, stamps, records, listed, dict(changes), beside])
