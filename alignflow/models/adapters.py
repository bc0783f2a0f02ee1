"""New adapters: which modules get one, of which rank, and how it starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignflow.errors import ArtifactError, RecipeError
from alignflow.models.adapter_fit import demand_all_keys
from alignflow.models.loading import quiet
from alignflow.models.loftq import start_from_quantization_error
from alignflow.recipe import TARGET_PRESETS, TuningSection, names_module

LINEAR = (torch.nn.Linear, Conv1D)
"""Layers that adapters go on; GPT-2's lie as (inputs, outputs)."""
MODELS = "transformers.models."
HEADS = frozenset({"lm_head", "embed_out", "output_layer", "score", "classifier"})
INITIALIZATIONS: dict[str, Any] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "eva": "eva",
    "loftq": True,
}
"""Ours to PEFT's. EVA is filled in once the rows are there, LoftQ here."""


def new_adapter(
    model: Any, tuning: TuningSection, task_type: str, *, like: Path | None = None
) -> Any:
    """`model` with a new adapter, its product zero; with LoftQ what quantization lost.

    `task_type` is PEFT's, `CAUSAL_LM` or `SEQ_CLS`; the latter trains the head `score` too. With
    `like`, an adapter's directory, ranks, scaling and modules are taken from there.

    Raises:
        RecipeError: `tuning` names modules or layers that the model does not have.
    """
    config: Any = LoraConfig.from_pretrained(str(like)) if like else _config(model, tuning)
    config.task_type, config.inference_mode = task_type, False
    if task_type == "SEQ_CLS":
        config.modules_to_save = sorted({*(config.modules_to_save or ()), "score"})
    with quiet():
        adapted: Any = get_peft_model(model, config)
    if like is None:
        _demand_matches(adapted, tuning)
        if tuning.initialization == "loftq":
            start_from_quantization_error(adapted, Path(model.name_or_path))
    return adapted


def put_adapter(model: Any, state: dict[str, Any], source: Path, name: str = "default") -> None:
    """Puts an adapter's tensors, which come from the directory `source`, into the one called `name`.

    Raises:
        ArtifactError: One has no place, or another shape than its place; or a place stays empty.
    """
    try:
        with quiet():
            outcome = set_peft_model_state_dict(model, state, adapter_name=name)
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"The adapter in {source} does not fit the model: {reason}. Use an adapter of this base."
        ) from error
    demand_all_keys(outcome, source, name)


def _config(model: Any, tuning: TuningSection) -> Any:
    layers = tuning.layers_to_transform
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if layers and count is not None and max(layers) >= count:
        raise RecipeError(
            f"tuning.layers_to_transform names layer {max(layers)}; the model has layers 0 to "
            f"{count - 1}. Leave out what is above."
        )
    with quiet():
        return LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=tuning.dropout,
            target_modules=target_modules(model, tuning.target_modules),
            exclude_modules=outside_language(model),
            rank_pattern=dict(tuning.rank_pattern),  # PEFT writes into it
            alpha_pattern=tuning.lora_alphas,
            layers_to_transform=layers,
            layers_pattern=_name_of_layers(model, count) if layers else None,
            init_lora_weights=INITIALIZATIONS[tuning.initialization],
            use_rslora=tuning.use_rslora,
            use_dora=tuning.use_dora,
            bias="none",
        )


def _name_of_layers(model: Any, count: int | None) -> str | None:
    """Name of the list of layers; without it PEFT may take an expert's number for the layer's."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name.rpartition(".")[2]
    return None


def _demand_matches(adapted: Any, tuning: TuningSection) -> None:
    """Raises RecipeError when a pattern means no module, which PEFT would pass over."""
    targeted = list(adapted.base_model.targeted_module_names)
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(tuning, field):
            if not any(names_module(pattern, name) for name in targeted):
                raise RecipeError(
                    f"tuning.{field}: {pattern!r} means none of the modules with adapters, such as "
                    f"{targeted[0]}. Give the end of a module's name."
                )


def target_modules(model: Any, targets: str | list[str]) -> list[str]:
    """Sorted leaf names of the linear layers that `targets` means in the language model.

    Raises:
        RecipeError: There is none.
    """
    language, head = _language_prefix(model), model.get_output_embeddings()
    linear = {
        leaf_name(name)
        for name, module in model.named_modules()
        if _is_linear(module) and name.startswith(language) and module is not head
    } - HEADS
    if targets == "all-linear" and linear:
        return sorted(leaf for leaf in linear if _peft_takes(model, leaf))
    wanted = TARGET_PRESETS.get(targets, [targets]) if isinstance(targets, str) else targets
    leaves = {name.rpartition(".")[2] for name in wanted}
    if unknown := sorted(leaves - linear):
        raise RecipeError(
            f"tuning.target_modules: the model has no linear layer {', '.join(unknown)}. "
            f"It has {', '.join(sorted(linear)) or 'none at all'}."
        )
    return sorted(set(wanted))


def _peft_takes(model: Any, leaf: str) -> bool:
    """Whether an adapter there has an effect: kernels of Mamba read some weights past the layer."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, leaf)
    except ValueError:
        return False
    return True


def leaf_name(module: str) -> str:
    """The end of a module's name that tells its kind: numbers alone are those of layers too."""
    end = re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", module)
    return end[0] if end else module


@torch.no_grad()
def _is_linear(module: Any) -> bool:
    """Whether it is a layer that gives one tensor; a model's own kind, such as a router, may not."""
    is_linear = isinstance(module, LINEAR)
    if not is_linear or not type(module).__module__.startswith(MODELS):
        return is_linear
    width = module.weight.shape[1]
    return isinstance(module(module.weight.new_zeros(1, width)), torch.Tensor)


def outside_language(model: Any) -> str | None:
    """Pattern of the modules that are no part of the language model; None where all are.

    Towers that read images or sound have layers of the same names, and no text passes them.
    """
    language = _language_prefix(model)
    return rf"(?!{re.escape(language)}).*" if language else None


def _language_prefix(model: Any) -> str:
    """What the names of the language model's modules begin with; nothing where it is all of it."""
    text = model.config.get_text_config()
    if text is model.config:
        return ""
    parts = (
        name
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and module.config is text
    )
    return f"{next(parts, '')}.".lstrip(".")
