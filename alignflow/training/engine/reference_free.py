"""What ORPO and SimPO share: training on pairs by mean log-probabilities, without a reference.

    loss = mean over pairs of f(m(chosen), m(rejected)) + nll_weight * NLL of chosen and demonstrations

with m(y) the mean log-probability of a response's tokens and f the method's own. The mean over pairs
and the NLL's mean over tokens are taken over the whole update, so that the micro-batch changes no
result. Only positions that a loss reads are projected to the vocabulary, in tiles (TRL's fused head).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, pad

from alignflow.data import joined_rows
from alignflow.stages import RowAccount
from alignflow.training.engine.arguments import gradient_checkpointing
from alignflow.training.engine.job import AnySection
from alignflow.training.engine.preferences import OnPairs, labelled_logps, longest, pair_rows
from alignflow.training.engine.rows import Row, account
from alignflow.training.engine.starting import starting_policy
from alignflow.training.engine.trainer import RowMeansTrainer

IGNORED = -100


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


class Trainer(RowMeansTrainer):
    """Transformers' trainer with a method's loss."""

    def __init__(self, *, method: ReferenceFree[Any], **options: Any) -> None:
        self.method = method
        self._logged: dict[str, list[float]] = defaultdict(list)
        super().__init__(**options)

    def counts(self, batch: dict[str, Any]) -> list[int | Tensor]:
        """Pairs, and tokens of the NLL term."""
        return [batch["pairs"].sum(), batch["nll"].sum()]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **given: Any) -> Any:
        """The micro-batch's part of the loss of its update."""
        pairs, tokens = given["num_items_in_batch"].clamp(min=1)
        scored = score(model, inputs)
        losses = self.method.loss(scored.chosen, scored.rejected)
        self._remember(scored, losses, int(inputs["nll"].sum()))
        return losses.sum() / pairs + self.method.nll_weight * scored.nll_sum / tokens

    def _remember(self, scored: Scored, losses: Tensor, tokens: int) -> None:
        beta, chosen, rejected = self.method.beta, scored.chosen.detach(), scored.rejected.detach()
        if tokens:
            self._logged["nll_loss"].append(float(scored.nll_sum.detach() / tokens))
        figures = {
            "pair_loss": losses.detach(),
            "rewards/chosen": beta * chosen,
            "rewards/rejected": beta * rejected,
            "rewards/margins": beta * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        for name, values in figures.items() if len(chosen) else ():
            self._logged[name].append(float(values.mean()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log, under TRL's names."""
        means = {name: sum(values) / len(values) for name, values in self._logged.items()}
        self._logged.clear()
        super().log({**logs, **means}, start_time)


def score(model: Any, batch: dict[str, Tensor]) -> Scored:
    """Log-probabilities of a batch of `Collator`, in one forward pass."""
    logps = labelled_logps(model, batch, batch["labels"]).float()
    pairs = int(batch["pairs"].sum())
    response = batch["response"][:, 1:]
    means = (logps * response).sum(dim=1) / response.sum(dim=1).clamp(min=1)
    return Scored(
        chosen=means[:pairs],
        rejected=means[len(means) - pairs :],
        nll_sum=-(logps * batch["nll"][:, 1:]).sum(),
    )


class ReferenceFree(OnPairs[AnySection]):
    """A method that is its pairs' loss; m(y) of B chosen and B rejected responses are given to it."""

    trainer = Trainer
    logged: ClassVar = {
        "loss": "loss",
        "train_accuracy": "rewards/accuracies",
        "nll_loss": "nll_loss",
    }
    nll_on_prompt = False
    """Whether the NLL term is of the prompt's tokens too."""
    nll_weight = 1.0
    """Of the NLL term."""
    demonstrations: Sequence[Row] = ()
    """Rows that join the pairs with the NLL term only."""

    @property
    def beta(self) -> float:
        """Scale of the rewards that are logged."""
        return self.job.section.beta  # type: ignore[attr-defined]

    def loss(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Losses of the pairs without the NLL term, [B]."""
        raise NotImplementedError

    def margin(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """How far the chosen response is preferred, [B]; 0 is undecided."""
        raise NotImplementedError

    @cached_property
    def rows(self) -> Sequence[Row]:
        return joined_rows(pair_rows(self.job, "train"), self.demonstrations)

    @cached_property
    def model(self) -> Any:
        """The starting policy, which gives log-probabilities without all logits at once."""
        model = starting_policy(self.job)
        adapted = hasattr(model, "get_base_model")
        add_fused_lm_head(model.get_base_model() if adapted else model)
        if self.job.tuning.dropout == 0:
            disable_dropout_in_model(model)
        if adapted and gradient_checkpointing(self.job.spec.compute):
            model.enable_input_require_grads()
        return model

    def arguments(self) -> dict[str, Any]:
        return {"remove_unused_columns": False}

    def features(self, row: Row) -> dict[str, Any]:
        """A pair as two whole sequences, their responses marked; a demonstration as one."""
        if "rejected_ids" not in row:
            whole = {"chosen_ids": row["input_ids"], "chosen_mask": row["completion_mask"]}
            return {**whole, "rejected_ids": [], "rejected_mask": []}
        prompt = row["prompt_ids"]
        columns: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            columns[f"{side}_ids"] = prompt + ids
            columns[f"{side}_mask"] = [0] * len(prompt) + [1] * len(ids)
        return columns

    def length(self, row: Row) -> int:
        return longest(row) if "rejected_ids" in row else len(row["input_ids"])

    def options(self) -> dict[str, Any]:
        pad = self.job.tokenizer.pad_token_id
        return {"method": self, "data_collator": Collator(pad, nll_on_prompt=self.nll_on_prompt)}

    def score(self, trainer: Any, batch: dict[str, Tensor]) -> Tensor:
        scored = score(trainer.model, batch)
        return self.margin(scored.chosen, scored.rejected)

    def prepare(self, trainer: Any) -> dict[str, Any]:
        return {"demonstrations": len(self.demonstrations)}

    def account(self) -> RowAccount:
        """Of the pairs, and of the demonstrations where there are any."""
        parts = ("preferences", "sft") if self.demonstrations else ("preferences",)
        return account(self.job, *parts, trained=len(self.rows), held_out=len(self.held_out))
