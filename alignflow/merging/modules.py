"""Which layers 4-bit loading quantizes: asked of the model itself, built without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from alignflow.errors import ArtifactError
from alignflow.modeling import HEADS, quiet, quiet_libraries


def empty_model(base: Path) -> Any:
    """The model on torch's meta device: modules and shapes, no memory."""
    quiet_libraries()
    config = AutoConfig.from_pretrained(str(base), trust_remote_code=False)
    with quiet(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


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
