"""Which layers 4-bit loading quantizes: asked of the model itself, built without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from alignflow.errors import ArtifactError
from alignflow.models import HEADS, quiet, quiet_libraries


def empty_model(base: Path) -> Any:
    """The model in float32 without weights: parameters take no memory, buffers are computed."""
    quiet_libraries()
    config = AutoConfig.from_pretrained(str(base), trust_remote_code=False)
    with quiet(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    model.tie_weights()
    return model


def quantized_modules(base: Path) -> list[str]:
    """Names of the linear layers that are quantized to NF4: all but the heads.

    Raises:
        ArtifactError: The model has transposed layers (GPT-2), whose 4-bit values differ.
    """
    names = []
    for name, module in empty_model(base).named_modules():
        if isinstance(module, Conv1D):
            raise ArtifactError(
                f"{base}: {name} is a Conv1D, whose NF4 values are not reproduced here. "
                "Merge with --qlora-base original."
            )
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in HEADS:
            names.append(name)
    return names
