"""Stage `dpo`: direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290); TRL's trainer.

    L = -log sigmoid(beta * (log p(chosen)/q(chosen) - log p(rejected)/q(rejected)))

Equation 7 of the paper, with p the policy and q the reference, and by default half an SFT term on the
chosen response. The policy continues the SFT adapter. Its start is the reference: a frozen copy that
TRL makes gives the reference log-probabilities of each row once, and is then dropped. Left out: a
reference that moves with the policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from alignflow.data import View, joined_rows
from alignflow.files import digest_directory
from alignflow.models import quiet, trainable_in
from alignflow.recipe import DPOSection
from alignflow.stages import library_versions
from alignflow.training.engine import (
    Job,
    OnPairs,
    ReferenceLogps,
    Row,
    RowMeansTrainer,
    batches,
    drop_reference,
    memory_errors,
    response_logps,
    sft_source,
)


class Trainer(RowMeansTrainer, DPOTrainer):
    """TRL's, on pairs that are token ids and carry their reference log-probabilities."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def counts(self, batch: dict[str, Any]) -> list[int | Tensor]:
        """Rows, and tokens of the SFT term."""
        chosen, _ = batch["completion_mask"][:, 1:].chunk(2)
        return [*super().counts(batch), chosen.sum()]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **given: Any) -> Any:
        """The SFT term is a mean over the tokens of the update, where TRL has the micro-batch's."""
        arguments: Any = self.args
        shares = torch.tensor(self.counts(inputs), device=arguments.device)
        rows, tokens = shares / given["num_items_in_batch"]
        self.loss_weights = [
            weight * tokens / rows if name == "sft" else weight
            for name, weight in zip(self.loss_types, arguments.loss_weights, strict=True)
        ]
        return super().compute_loss(model, inputs, **given)


class DPO(OnPairs[DPOSection]):
    """Raises chosen over rejected responses, relative to the reference."""

    section, configuration, trainer = DPOSection, DPOConfig, Trainer
    passed = ("beta", "label_smoothing")
    logged: ClassVar = {
        "loss": "loss",
        "train_accuracy": "rewards/accuracies",
        "token_accuracy": "mean_token_accuracy",
    }

    def arguments(self) -> dict[str, Any]:
        terms, weights = list(self.job.section.loss_type), list(self.job.section.weights)
        return {"loss_type": terms, "loss_weights": weights, "precompute_ref_log_probs": True}

    def features(self, row: Row) -> dict[str, Any]:
        return {name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}

    def prepare(self, trainer: Any) -> dict[str, Any]:
        """Gives each training row its reference log-probabilities, and drops the reference."""
        self.reference = self._reference_logps(trainer)
        trainer.train_dataset = View(len(self.rows), self._with_reference)
        if self.job.tuning.mode != "full":
            drop_reference(self.model)
            trainable_in(self.model, self.job.tuning.trained_dtype)
        return {"reference_logps_computed": self.reference.computed}

    def _with_reference(self, at: int) -> dict[str, Any]:
        chosen, rejected = self.reference.of(at)
        logps = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return self.features(self.rows[at]) | logps

    def _reference_logps(self, trainer: Any) -> ReferenceLogps:
        """Log-probabilities of every row under the reference; only new rows are computed."""
        rows = joined_rows(self.rows, self.held_out)
        known = ReferenceLogps(Path(self.job.spec.home), _identity(self.job, trainer), rows)
        missing = known.missing()
        wanted = View(len(missing), lambda at: rows[missing[at]])
        training = self.model.training
        self.model.eval()
        with quiet(), memory_errors(trainer):
            for chunk, batch in batches(self, trainer, wanted):
                logps = (side.tolist() for side in trainer.compute_ref_log_probs(self.model, batch))
                places = (missing[at] for at in chunk)
                known.add(zip(places, zip(*logps, strict=True), strict=True))
                self.job.events.progress(known.computed, len(missing), "reference rows")
        self.model.train(training)
        return known

    def score(self, trainer: Any, batch: dict[str, Tensor]) -> Tensor:
        chosen, rejected = response_logps(trainer.model, batch).chunk(2)
        return chosen - rejected

    def margins(self, trainer: Any) -> list[float]:
        """Implicit reward of the chosen minus that of the rejected response."""
        first, count = len(self.rows), len(self.held_out)
        logps = map(self.reference.of, range(first, first + count))
        reference = [chosen - rejected for chosen, rejected in logps]
        policy = super().margins(trainer)
        return [trainer.beta * (p - q) for p, q in zip(policy, reference, strict=True)]


run = DPO.run


def _identity(job: Job[DPOSection], trainer: Any) -> dict[str, Any]:
    """All that the reference's log-probabilities depend on beside token ids."""
    adapter, sft_model = sft_source(job)
    start = adapter or sft_model
    return {
        "base": job.base.digest,
        "start": digest_directory(start) if start else _new_start(job),
        "weights_dtype": job.weights_dtype,
        "dtype": job.dtype,
        "quantization": job.quantization,
        "ld_alpha": trainer.ld_alpha,
        "libraries": library_versions(),
        "device": str(trainer.args.device.type),
    }


def _new_start(job: Job[DPOSection]) -> dict[str, Any] | None:
    """What a new adapter makes of the base; None where it changes nothing at its start."""
    plain = job.tuning.initialization in ("default", "eva", "gaussian")
    if plain or job.tuning.mode == "full":
        return None
    return {"seed": job.spec.seed, "tuning": job.tuning.model_dump(mode="json")}
