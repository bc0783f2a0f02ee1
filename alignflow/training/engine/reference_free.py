"""What ORPO and SimPO share: training on pairs by mean log-probabilities, without a reference.

    loss = mean over pairs of f(m(chosen), m(rejected)) + nll_weight * NLL of chosen and demonstrations

with m(y) the mean log-probability of a response's tokens and f the method's own. The mean over pairs
and the NLL's mean over tokens are taken over the whole update, so that the micro-batch changes no
result. Only positions that a loss reads are projected to the vocabulary, in tiles (TRL's fused head).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, pad

from alignflow.models.loading import quiet
from alignflow.stages.spec import StageResult
from alignflow.training.engine.common import (
    Job,
    account,
    demonstration_rows,
    train,
    training_arguments,
)
from alignflow.training.engine.continuing import continue_from_champion
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.preferences import (
    agreement,
    by_length,
    longest,
    pair_rows,
    starting_policy,
)
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.trainer import ThinTrainer

PairLoss = Callable[[Tensor, Tensor], Tensor]
IGNORED = -100


class Objective(NamedTuple):
    """A method's loss. Its functions take mean log-probabilities of B chosen and B rejected ones."""

    loss: PairLoss
    """Losses of the pairs, [B]."""
    margin: PairLoss
    """How far the chosen response is preferred, [B]; 0 is undecided."""
    beta: float
    """Scale of the rewards that are logged."""
    nll_weight: float
    nll_on_prompt: bool = False


class Scored(NamedTuple):
    """A batch of B pairs, and demonstrations, scored."""

    chosen: Tensor
    """Mean log-probability of the tokens of a response, [B]."""
    rejected: Tensor
    nll_sum: Tensor
    """Over the tokens of the NLL term; a scalar."""


class Collator:
    """Pads B pairs and D demonstrations to rows: B chosen, D demonstrations, B rejected."""

    def __init__(self, pad_token_id: int, *, nll_on_prompt: bool) -> None:
        self._pad_token_id = pad_token_id
        self._nll_on_prompt = nll_on_prompt

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`labels` are the tokens that a loss reads, `response` and `nll` say which one does."""
        pairs = [row for row in rows if row["rejected_ids"]]
        sequences = [
            *((row["chosen_ids"], row["chosen_mask"]) for row in pairs),
            *((row["chosen_ids"], row["chosen_mask"]) for row in rows if not row["rejected_ids"]),
            *((row["rejected_ids"], row["rejected_mask"]) for row in pairs),
        ]
        ids = _padded([ids for ids, _ in sequences], self._pad_token_id)
        response = _padded([mask for _, mask in sequences], 0)
        attention = _padded([[1] * len(ids) for ids, _ in sequences], 0)
        nll = attention.clone() if self._nll_on_prompt else response.clone()
        nll[len(rows) :] = 0
        nll[:, 0] = 0  # nothing predicts the first token
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "labels": ids.masked_fill(response + nll == 0, IGNORED),
            "response": response,
            "nll": nll,
            "pairs": torch.tensor([len(pairs)]),
        }


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return pad([torch.tensor(row) for row in rows], padding_value=value, padding_side="right")


class Trainer(ThinTrainer):
    """Transformers' trainer with an objective."""

    objective: Objective
    loss_is_scaled_for_ga = True

    def prepare(self, objective: Objective, lengths: list[int], batch_size: int) -> None:
        """Sets what the constructor of a Transformers trainer does not take."""
        self.objective = objective
        self.lengths = lengths
        self.effective_batch_size = batch_size
        self._logged: dict[str, list[float]] = defaultdict(list)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """(tokens of the NLL term, pairs) of a whole update, over all devices."""
        counts = torch.stack(
            [
                torch.stack([batch["nll"].sum(), batch["pairs"].sum()]).to(device)
                for batch in batch_samples
            ]
        ).sum(dim=0)
        return self.accelerator.reduce(counts, "sum") / self.accelerator.num_processes

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The micro-batch's part of the loss of its update."""
        tokens, pairs = num_items_in_batch.clamp(min=1)
        scored = score(model, inputs)
        losses = self.objective.loss(scored.chosen, scored.rejected)
        loss = losses.sum() / pairs + self.objective.nll_weight * scored.nll_sum / tokens
        self._remember(scored, losses, int(inputs["nll"].sum()))
        return (loss, scored) if return_outputs else loss

    def _remember(self, scored: Scored, losses: Tensor, tokens: int) -> None:
        chosen, rejected = scored.chosen.detach(), scored.rejected.detach()
        if tokens:
            self._logged["nll_loss"].append(float(scored.nll_sum.detach() / tokens))
        if len(chosen) == 0:
            return
        beta = self.objective.beta
        for name, values in {
            "pair_loss": losses.detach(),
            "rewards/chosen": beta * chosen,
            "rewards/rejected": beta * rejected,
            "rewards/margins": beta * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }.items():
            self._logged[name].append(float(values.mean()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log, under TRL's names."""
        means = {name: sum(values) / len(values) for name, values in self._logged.items()}
        self._logged.clear()
        super().log({**logs, **means}, start_time)


def score(model: Any, batch: dict[str, Tensor]) -> Scored:
    """Log-probabilities of a batch of `Collator`, in one forward pass."""
    logps = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        use_cache=False,
        fused_lm_head=True,
    ).log_probs.float()
    pairs = int(batch["pairs"].sum())
    response = batch["response"][:, 1:]
    means = (logps * response).sum(dim=1) / response.sum(dim=1).clamp(min=1)
    return Scored(
        chosen=means[:pairs],
        rejected=means[len(means) - pairs :],
        nll_sum=-(logps * batch["nll"][:, 1:]).sum(),
    )


def run_reference_free(job: Job[Any], objective: Objective, *, demonstrations: bool) -> StageResult:
    """Trains and measures.

    Args:
        job: The stage's spec, read.
        objective: The method's loss.
        demonstrations: Whether rows of the part `sft` join the pairs, with the NLL term only.
    """
    pairs, held_out = pair_rows(job, "train"), pair_rows(job, "held_out")
    rows = [_sequences(row) for row in pairs]
    if demonstrations:
        rows += [
            {
                "chosen_ids": row["input_ids"],
                "chosen_mask": row["completion_mask"],
                "rejected_ids": [],
                "rejected_mask": [],
            }
            for row in demonstration_rows(job)
        ]
    model = starting_policy(job)
    trainer = _trainer(job, model, objective, rows)
    make_ready(trainer, job)
    continue_from_champion(model, job)
    params = parameters(model, job, trainer.args)
    last = train(trainer, job)
    margins = _margins(trainer, held_out)
    metrics, details = agreement(margins, [row["prompt"] for row in held_out], job.spec.seed)
    save(model, job)
    parts = ("preferences", "sft") if demonstrations else "preferences"
    return StageResult(
        metrics={
            **metrics,
            "loss": last.get("loss"),
            "train_accuracy": last.get("rewards/accuracies"),
            "nll_loss": last.get("nll_loss"),
        },
        rows=account(job, parts, len(rows), len(held_out)),
        params={**params, "demonstrations": len(rows) - len(pairs)},
        details={**details, "steps": trainer.state.global_step},
    )


def _trainer(
    job: Job[Any], model: Any, objective: Objective, rows: list[dict[str, Any]]
) -> Trainer:
    arguments = training_arguments(TrainingArguments, job, len(rows), remove_unused_columns=False)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    add_fused_lm_head(inner)
    if job.tuning.dropout == 0:
        disable_dropout_in_model(model)
    if arguments.gradient_checkpointing and inner is not model:
        model.enable_input_require_grads()
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=job.tokenizer,
            data_collator=Collator(
                job.tokenizer.pad_token_id, nll_on_prompt=objective.nll_on_prompt
            ),
        )
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    trainer.prepare(objective, lengths, job.section.batch_size)
    return trainer


def _sequences(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as two whole sequences, their responses marked."""
    prompt = row["prompt_ids"]
    columns: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids = row[f"{side}_ids"]
        columns[f"{side}_ids"] = prompt + ids
        columns[f"{side}_mask"] = [0] * len(prompt) + [1] * len(ids)
    return columns


@torch.no_grad()
def _margins(trainer: Trainer, rows: list[dict[str, Any]]) -> list[float]:
    """How far each pair's chosen response is preferred, in the order of the rows."""
    model: Any = trainer.model
    model.eval()
    margins = [0.0] * len(rows)
    collate: Any = trainer.data_collator
    for chunk in by_length(
        [longest(row) for row in rows], 2 * trainer.args.per_device_train_batch_size
    ):
        batch = trainer._prepare_inputs(collate([_sequences(rows[at]) for at in chunk]))
        with trainer.accelerator.autocast():
            scored = score(model, batch)
        values = trainer.objective.margin(scored.chosen, scored.rejected)
        for at, margin in zip(chunk, values.tolist(), strict=True):
            margins[at] = margin
    return margins
