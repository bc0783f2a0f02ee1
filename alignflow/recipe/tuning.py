"""The section of a recipe that says which weights move."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from alignflow.recipe.section import Section

TARGET_PRESETS: dict[str, tuple[str, ...]] = {
    "attention-qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
}


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

    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""

    use_dora: bool = False
    """Decompose the weight into magnitude and direction (DoRA)."""

    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that adapters are trained in. bfloat16 loses small updates."""

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

    @model_validator(mode="after")
    def _no_head(self) -> Self:
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
        return self
