"""The optimizer of a training stage, as its section and the tuning ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from alignflow.models import device
from alignflow.recipe import TrainingSection
from alignflow.training.engine.stochastic_rounding import StochasticRounding


def set_optimizer(
    trainer: Trainer, section: TrainingSection, lora_plus_ratio: float | None, seed: int
) -> None:
    """Gives a trainer its optimizer, before it trains.

    Args:
        trainer: Its model has the weights, in the types, that train.
        section: Names the optimizer, its rate and its decay.
        lora_plus_ratio: Rate of B over that of A; None is one rate for all.
        seed: Of stochastic rounding.
    """
    model: Any = trainer.model
    if lora_plus_ratio is not None and isinstance(model, PeftModel):
        kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args)
        options.pop("lr", None)
        trainer.optimizer = create_loraplus_optimizer(
            model,
            kind,
            lr=section.learning_rate,
            loraplus_lr_ratio=lora_plus_ratio,
            loraplus_weight_decay=section.weight_decay,
            **options,
        )
    else:
        trainer.create_optimizer()
    assert isinstance(trainer.optimizer, Optimizer)
    trainer.optimizer = rounding(trainer.optimizer, seed)


def rounding(optimizer: Optimizer, seed: int) -> Optimizer:
    """The optimizer, with stochastic rounding if it trains bfloat16 weights."""
    weights = (p for group in optimizer.param_groups for p in group["params"])
    if any(p.dtype == torch.bfloat16 for p in weights):
        return StochasticRounding(optimizer, seed)
    return optimizer


def transformers_name(section: TrainingSection) -> dict[str, str]:
    """The section's optimizer as an argument of Transformers; nothing for its default, AdamW."""
    name = _available(section.optimizer)
    return {} if name == "adamw" else {"optim": name}


def _available(name: str) -> str:
    """`name`, unpaged on a CPU.

    A paged optimizer moves its state to the CPU's memory under pressure. On a CPU it is there
    already; the steps are the same.
    """
    return name.removeprefix("paged_") if device().type == "cpu" else name


def new_optimizer(
    section: TrainingSection, groups: Sequence[dict[str, Any]], *, seed: int, **options: Any
) -> Optimizer:
    """The section's optimizer for a loop of our own; `options` are AdamW's, `seed` the rounding's."""
    name = _available(section.optimizer)
    if name == "adamw":
        return rounding(torch.optim.AdamW(groups, **options), seed)
    from bitsandbytes.optim.adamw import AdamW

    paged = name.startswith("paged_")
    return rounding(AdamW(groups, optim_bits=8, is_paged=paged, **options), seed)


def split_factors(
    model: nn.Module, group: dict[str, Any], lora_plus_ratio: float | None
) -> list[dict[str, Any]]:
    """LoRA+ for a loop of our own: the group without its B matrices, and a faster one of them.

    Args:
        model: Its parameters' names tell the factors apart.
        group: `params`, and `peak`, their highest rate.
        lora_plus_ratio: Peak of B over that of the others; None leaves the group whole.
    """
    if lora_plus_ratio is None:
        return [group]
    b = {id(p) for name, p in model.named_parameters() if ".lora_B." in name}
    slow, fast = ([p for p in group["params"] if (id(p) in b) == is_b] for is_b in (False, True))
    return [
        {**group, "params": slow},
        {**group, "params": fast, "peak": group["peak"] * lora_plus_ratio},
    ]
