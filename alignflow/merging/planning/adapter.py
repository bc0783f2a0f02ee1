"""What an adapter's files say: which module gets which factors, and with what scaling."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.models import FLOATS, Located, read_header
from alignflow.recipe import names_module
from alignflow.stages import ADAPTER_PREFIX, ADAPTER_WEIGHTS

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", ADAPTER_WEIGHTS
FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
TOKENS = ".token_adapter.trainable_tokens_delta"
COPIES = (".modules_to_save.", ".original_module.")
"""In the names of tensors that PEFT writes once more where it saves embeddings that it trains."""
NOT_MERGED = (*COPIES, ".token_adapter.trainable")
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Those that leave the base as it is. The others move part of the base into the adapter."""
VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication"),
    *("megatron_config", "monteclora_config", "use_bdlora", "use_qalora", "velora_config"),
)
"""Settings of PEFT that change what the factors mean."""


@dataclass(frozen=True)
class AdapterStep:
    """One merge: an adapter, or several whose weighted deltas are added."""

    path: Path
    weight: float = 1.0
    """Times its delta. With other adapters in `combine`, all deltas are added (`cat`)."""
    combine: tuple[tuple[Path, float], ...] = ()
    """Further adapters of the same base and their weights."""

    @property
    def members(self) -> tuple[tuple[Path, float], ...]:
        """All adapters of the step, with their weights."""
        return ((self.path, self.weight), *self.combine)


def recorded_base(adapter: Path) -> dict[str, Any]:
    """What an adapter of ours was trained on (`source, digest, quantization`); of another, nothing."""
    note = adapter / "base_model.json"
    return json.loads(note.read_text()) if note.is_file() else {}


def trained_on_nf4(adapter: Path) -> bool:
    """Whether an adapter of ours says that it was trained with QLoRA."""
    return recorded_base(adapter).get("quantization") == "nf4"


@dataclass(frozen=True)
class Factors:
    """The low-rank factors of one module (or one fused parameter)."""

    module: str
    a: Located
    b: Located
    scaling: float
    embedding: bool = False
    magnitude: Located | None = None
    bias: Located | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter as its config and its header describe it."""

    path: Path
    config: Mapping[str, Any]
    factors: tuple[Factors, ...]
    replaced: Mapping[str, Located] = field(default_factory=dict)
    """Tensor name in the model to the tensor that takes its place."""
    tokens: Mapping[str, tuple[Located, tuple[int, ...]]] = field(default_factory=dict)
    """Embedding module to the rows that are replaced, and their indices."""


def read_adapter(path: Path) -> Adapter:
    """Reads an adapter's config and header.

    Raises:
        ArtifactError: It is absent, damaged, or of a kind that is not merged here.
    """
    config = _config(path)
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise ArtifactError(
            f"{path} holds no {WEIGHTS_FILE}. Save the adapter with safetensors (PEFT's default)."
        )
    grouped: dict[str, dict[str, Located]] = {}
    replaced: dict[str, Located] = {}
    tokens: dict[str, tuple[Located, tuple[int, ...]]] = {}
    tensors = {_without_prefix(weights, tensor): tensor for tensor in read_header(weights)}
    for name, tensor in tensors.items():
        if any(mark in name and name.replace(mark, ".") in tensors for mark in COPIES):
            continue
        suffix = next((end for end in FACTORS if name.endswith(end)), None)
        if suffix:
            grouped.setdefault(name.removesuffix(suffix), {})[FACTORS[suffix]] = tensor
        elif name.endswith(TOKENS):
            module = name.removesuffix(TOKENS)
            tokens[module] = (tensor, _token_indices(path, config, module, tensor))
        elif ".lora_" in name or any(mark in name for mark in NOT_MERGED):
            raise ArtifactError(
                f"{weights}: {tensor.name} belongs to a kind of adapter that cannot be merged "
                "here. Merge it with PEFT's merge_and_unload."
            )
        else:
            replaced[name.replace(".token_adapter.", ".").replace(".base_layer.", ".")] = tensor
    factors = tuple(_factors(path, config, name, parts) for name, parts in grouped.items())
    return Adapter(path, config, factors, replaced, tokens)


def _config(path: Path) -> Mapping[str, Any]:
    file = path / CONFIG_FILE
    if not file.is_file():
        raise ArtifactError(
            f"{path} holds no adapter (no {CONFIG_FILE}). Name an adapter's folder."
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ArtifactError(f"{file} is no JSON ({error}). Save the adapter again.") from error
    if config.get("peft_type") != "LORA":
        raise ArtifactError(
            f"{file}: peft_type is {config.get('peft_type')}, only LORA is merged here. Use PEFT's "
            "merge_and_unload where that type has it."
        )
    for name in VARIANTS:
        if config.get(name):
            raise ArtifactError(
                f"{file}: {name} is {config[name]!r}; such an adapter cannot be merged here. "
                "Use PEFT's merge_and_unload where that variant has it."
            )
    if config.get("init_lora_weights", True) not in PLAIN_INITIALIZATIONS:
        raise ArtifactError(
            f"{file}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base "
            "model itself, so the adapter does not fit the original base. Save it with "
            "save_pretrained(path_initial_model_for_weight_conversion=...) first."
        )
    return config


def _without_prefix(weights: Path, tensor: Located) -> str:
    if not tensor.name.startswith(ADAPTER_PREFIX):
        raise ArtifactError(
            f"{weights}: tensor {tensor.name} does not begin with {ADAPTER_PREFIX!r}, so it is not known "
            "which module it belongs to. Save the adapter with PEFT's save_pretrained."
        )
    if tensor.dtype not in FLOATS:
        raise ArtifactError(
            f"{weights}: tensor {tensor.name} has type {tensor.dtype}; adapters are merged from "
            f"{', '.join(FLOATS)}. Save the adapter in one of these."
        )
    return tensor.name.removeprefix(ADAPTER_PREFIX)


def _factors(
    path: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, Located]
) -> Factors:
    embedding = "embedding_a" in parts or "embedding_b" in parts
    a = parts.get("embedding_a" if embedding else "a")
    b = parts.get("embedding_b" if embedding else "b")
    if a is None or b is None:
        alone = a or b or next(iter(parts.values()))
        raise ArtifactError(
            f"{path / WEIGHTS_FILE}: {alone.name} stands without its other factor. "
            "Save the adapter again."
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise ArtifactError(
            f"{path / WEIGHTS_FILE}: the factors of {module} have shapes {a.shape} and {b.shape}; "
            "only matrices with the same rank are merged here, not convolutions."
        )
    magnitude, bias = parts.get("magnitude"), parts.get("bias")
    return Factors(module, a, b, scaling_of(config, module, a.shape[0]), embedding, magnitude, bias)


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies B @ A by: alpha over the rank, or over its root with rsLoRA."""
    patterns = (config.get("alpha_pattern") or {}).items()
    alphas = (alpha for pattern, alpha in patterns if names_module(pattern, module))
    alpha = next(alphas, config.get("lora_alpha", 8))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _token_indices(
    path: Path, config: Mapping[str, Any], module: str, tensor: Located
) -> tuple[int, ...]:
    wanted = config.get("trainable_token_indices")
    if isinstance(wanted, Mapping):
        wanted = next(
            (v for name, v in wanted.items() if module == name or module.endswith(f".{name}")), None
        )
    if wanted is None or len(wanted) != tensor.shape[0]:
        count = "none" if wanted is None else len(wanted)
        raise ArtifactError(
            f"{path}: {tensor.name} has {tensor.shape[0]} rows but {CONFIG_FILE} gives {count} "
            f"trainable_token_indices for {module}. The two files do not belong together."
        )
    return tuple(wanted)
