"""EVA: a new adapter starts from the inputs that the stage's own rows cause in the base model.

The rows of A are the leading right-singular vectors of what each layer gets as input; ranks are
shared out among the layers by explained variance, within the same total. (Paischer et al. 2024,
arXiv:2410.07170; computed by PEFT.) B is zero, so the model is the base until it trains.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_eva_state_dict, initialize_lora_eva_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from alignflow.errors import DataError, StageError
from alignflow.models import quiet, trainable_in
from alignflow.stages import EVA_FILE, EventWriter
from alignflow.training.engine.job import Job
from alignflow.training.engine.loop import memory_errors
from alignflow.training.engine.trainer import QuietTrainer, ThinTrainer

ROWS = 16
"""Rows per forward pass; fixed, so that the micro-batch changes nothing."""
BATCHES = 64
"""The inputs are those of so many batches at most."""
PASSES = 20
"""Over these batches, after which vectors that still turn are an error."""
INPUTS = ("input_ids", "attention_mask", "position_ids")


def make_ready(trainer: QuietTrainer, job: Job[Any]) -> None:
    """Initializes a new adapter from the rows where the recipe asks for it, and sets types.

    Call it once the trainer is there: TRL casts adapters on NF4 weights to bfloat16.
    """
    model: Any = trainer.model
    is_new = job.sft is None and job.tuning.init_adapter is None
    asked = is_new and job.tuning.initialization == "eva"
    if isinstance(model, PeftModel) and asked and isinstance(trainer, ThinTrainer):
        start_from_inputs(trainer, job.work / EVA_FILE, job.events)
    trainable_in(model, job.tuning.trained_dtype)


def start_from_inputs(trainer: ThinTrainer, file: Path, events: EventWriter) -> None:
    """Fills the adapter `default`, from `file` if an earlier attempt wrote it.

    A later attempt with another micro-batch, or on another device, must have the same ranks, or its
    checkpoints would not fit.

    Raises:
        DataError: The rows have too few tokens.
        StageError: The vectors do not settle.
    """
    model: Any = trainer.model
    config = model.peft_config["default"]
    if not file.is_file():
        events.message("EVA: reading the layers' inputs.")
        ranks = [config.r, *config.rank_pattern.values()]
        batches = Batches(trainer, least_tokens=round(max(ranks) * config.eva_config.rho))
        with quiet(), memory_errors(trainer):
            vectors = get_eva_state_dict(
                model,
                batches,
                forward_fn=batches.forward,
                prepare_model_inputs_fn=lambda inputs, _: read_tokens(inputs).nonzero(),
                show_progress_bar=False,
            )
        partial = file.with_suffix(".partial")
        save_file({name: value.contiguous().clone() for name, value in vectors.items()}, partial)
        os.replace(partial, file)
    vectors = {name: value.to(model.device) for name, value in load_file(str(file)).items()}
    with quiet():
        initialize_lora_eva_weights(model, eva_state_dict=vectors)
    # From here on it is an adapter like any other, which PEFT can load and copy without rows.
    config.init_lora_weights, config.eva_config = True, None


class Batches:
    """The first batches of a stage's rows, for PEFT to go round and round.

    Each must have `least_tokens`, since it gives so many vectors; small batches are joined.
    """

    def __init__(self, trainer: ThinTrainer, least_tokens: int) -> None:
        self._forwards = 0
        rows = len(trainer.train_dataset)  # type: ignore[arg-type]
        size = min(ROWS, rows)
        while True:
            loader = DataLoader(
                trainer.train_dataset,  # type: ignore[arg-type]
                batch_size=size,
                sampler=trainer._get_train_sampler(),
                collate_fn=trainer.data_collator,
                drop_last=True,
            )
            self._batches: list[dict[str, Tensor]] = list(islice(loader, BATCHES))
            fewest = min(int(read_tokens(batch).sum()) for batch in self._batches)
            if fewest >= least_tokens:
                break
            if size == rows:
                raise DataError(
                    f"tuning.initialization: eva needs {least_tokens} tokens that a loss reads, "
                    f"{rows} rows have {fewest}. Give more rows, a lower rank, or another "
                    "initialization."
                )
            size = min(2 * size, rows)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._batches)

    def forward(self, model: Any, inputs: dict[str, Tensor]) -> None:
        """The base model without its head: only the layers' inputs are of interest."""
        self._forwards += 1
        if self._forwards > PASSES * len(self):
            raise StageError(
                f"EVA's vectors still turn after {PASSES} passes over {len(self)} batches. Lower "
                "tuning.rank, or take another tuning.initialization."
            )
        backbone = model.get_base_model().base_model
        backbone(**{name: inputs[name] for name in INPUTS if name in inputs})


def read_tokens(batch: dict[str, Tensor]) -> Tensor:
    """True on the tokens that a loss reads, or on all real ones where the batch does not say, [B, T]."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    labels, completion = batch.get("labels"), batch.get("completion_mask")
    if labels is not None and labels.shape == mask.shape:
        mask = mask & (labels != -100)
    if completion is not None:
        mask = mask & completion.bool()
    return mask
