"""The section of a recipe that says which weights move."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignflow.recipe.section import Section

TARGET_PRESETS: dict[str, tuple[str, ...]] = {
    "attention-qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
}

MOVES_THE_BASE = {
    "pissa": "PiSSA takes the principal part out of the frozen base",
    "olora": "OLoRA takes an orthonormal part out of the frozen base",
    "corda": "CorDA takes a part chosen by covariances out of the frozen base",
    "lora_ga": "LoRA-GA subtracts its start from the frozen base",
}
"""Initializations of PEFT that no stage here can use, and why."""


class TuningSection(Section):
    """Which weights move."""

    mode: Literal["lora", "qlora", "full"] = "lora"
    """`lora`: adapters on frozen weights; `qlora`: on NF4 weights; `full`: every weight."""

    rank: int = Field(default=16, ge=1, le=1024)
    """LoRA rank: 8 to 16 for format and style, 64 to 128 for reasoning."""

    alpha: float | None = Field(default=None, gt=0, le=4096)
    """LoRA alpha; None is twice the rank."""

    target_modules: str | list[str] = "all-linear"
    """`attention-qv`, `attention`, `all-linear`, or a list of module names."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input, a probability."""

    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Other ranks by module name, its end, or a regular expression for it: {down_proj: 64}."""

    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Other alphas, named in the same way. With `alpha` None a module of another rank has twice it."""

    layers_to_transform: list[int] | None = None
    """Layers that get adapters, counted from 0; None is all."""

    initialization: Literal["default", "gaussian", "orthogonal", "eva", "loftq"] = "default"
    """How a new adapter starts. `eva`: from the inputs that the stage's rows cause, ranks shared out
    by explained variance; `loftq` (mode qlora): from what quantization lost."""

    lora_plus_ratio: float | None = Field(default=None, ge=1, le=1000)
    """LoRA+: the second matrix, B, learns faster than A by this factor (paper: 16); None is off."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""

    use_dora: bool = False
    """Decompose the weight into magnitude and direction (DoRA)."""

    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that adapters are trained in. Updates of bfloat16 weights are rounded stochastically."""

    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in mode full. `float32`: master weights, computed with in `dtype`;
    `bfloat16`: half the memory for weights and gradients, updates rounded stochastically."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. `auto`: bfloat16 on a GPU, float32 on a CPU."""

    init_adapter: str | None = None
    """Directory of an adapter that training starts from, on the same base model."""

    @property
    def lora_alpha(self) -> float:
        """Alpha in force."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    @property
    def lora_scaling(self) -> float:
        """Factor on the product of the two adapter matrices."""
        return self.lora_alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @property
    def trained_dtype(self) -> str:
        """Type of what trains."""
        return self.weights_dtype if self.mode == "full" else self.adapter_dtype

    @property
    def lora_alphas(self) -> dict[str, float]:
        """Alphas in force of the modules that depart from `lora_alpha`, the first match first."""
        ranks = self.rank_pattern if self.alpha is None else {}
        doubled = {key: 2.0 * rank for key, rank in ranks.items() if key not in self.alpha_pattern}
        return {**self.alpha_pattern, **doubled}

    def rank_of(self, module: str) -> int:
        """Rank of the adapter on a module, by its full name."""
        return next(
            (rank for key, rank in self.rank_pattern.items() if names_module(key, module)),
            self.rank,
        )

    def logged(self) -> dict[str, Any]:
        """What MLflow gets, under names that need no quotes in a search.

        `lora_target_modules_resolved` is not here: params never change, and only a stage knows it.
        """
        if self.mode == "full":
            return {
                "tuning_mode": "full",
                "quantization": "none",
                "weights_dtype": self.weights_dtype,
            }
        targets = self.target_modules
        given = {
            "lora_rank_pattern": json.dumps(self.rank_pattern) if self.rank_pattern else None,
            "lora_alpha_pattern": json.dumps(self.lora_alphas) if self.lora_alphas else None,
            "lora_layers": self.layers_to_transform
            and ",".join(map(str, self.layers_to_transform)),
            "lora_plus_ratio": self.lora_plus_ratio,
        }
        return {
            "tuning_mode": self.mode,
            "quantization": "nf4" if self.mode == "qlora" else "none",
            "lora_rank": self.rank,
            "lora_alpha": self.lora_alpha,
            "lora_scaling": self.lora_scaling,
            "lora_dropout": self.dropout,
            "lora_target_modules": targets
            if isinstance(targets, str)
            else ",".join(sorted(targets)),
            "lora_use_rslora": self.use_rslora,
            "lora_use_dora": self.use_dora,
            "lora_initialization": self.initialization,
            "adapter_dtype": self.adapter_dtype,
            **{name: value for name, value in given.items() if value is not None},
        }

    @field_validator("initialization", mode="before")
    @classmethod
    def _base_stays(cls, value: Any) -> Any:
        name = re.sub(r"_niter_\d+$", "", value) if isinstance(value, str) else value
        if name in MOVES_THE_BASE:
            raise ValueError(
                f"{MOVES_THE_BASE[name]}, which is also the reference and the base of the other "
                "adapters, and the adapter no longer fits the base model; take default, "
                "gaussian, orthogonal, eva, or loftq"
            )
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_are_regular(cls, patterns: dict[str, Any]) -> dict[str, Any]:
        for pattern, value in patterns.items():
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ValueError(
                    f"{pattern!r} is no regular expression ({problem}); give a module's name"
                ) from problem
            if not 0 < value <= 4096:
                raise ValueError(f"{pattern!r} has {value}; give a number from 1 to 4096")
        return patterns

    @field_validator("layers_to_transform")
    @classmethod
    def _layers_are_counted_from_zero(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and (not layers or min(layers) < 0 or len({*layers}) < len(layers)):
            raise ValueError(
                f"layers_to_transform is {layers}; give different numbers from 0, or leave it out"
            )
        return layers

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        targets = (
            self.target_modules if isinstance(self.target_modules, list) else [self.target_modules]
        )
        if not targets:
            raise ValueError("target_modules is empty; name modules or use all-linear")
        if "lm_head" in targets:
            raise ValueError(
                "target_modules names lm_head, which TRL's fused loss and the shared reference "
                "cannot train; leave it out (all-linear already does)"
            )
        if self.mode == "qlora" and self.use_dora:
            raise ValueError("use_dora with mode qlora is not supported; use mode lora")
        if self.initialization == "loftq" and self.mode != "qlora":
            raise ValueError(
                f"initialization loftq makes up for what quantization lost, but mode {self.mode} "
                "quantizes nothing; use mode qlora, or another initialization"
            )
        ranks = [self.rank, *self.rank_pattern.values()]
        if self.initialization == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError(
                f"initialization orthogonal needs even ranks, here are {ranks}; change the odd ones"
            )
        if self.mode == "full" and self.lora_plus_ratio is not None:
            raise ValueError(
                "lora_plus_ratio is about the two matrices of an adapter and mode full has none; "
                "remove it"
            )
        if self.weights_dtype == "bfloat16" and self.mode != "full":
            raise ValueError(
                f"weights_dtype is for mode full; the frozen weights of mode {self.mode} are in "
                "`dtype` already, and adapters in adapter_dtype. Remove it"
            )
        if self.weights_dtype == "bfloat16" and self.dtype == "float32":
            raise ValueError(
                "weights_dtype bfloat16 computes in bfloat16, but dtype is float32; remove one"
            )
        return self


def names_module(pattern: str, module: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` means a module, by PEFT's rule."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
