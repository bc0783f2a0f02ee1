"""PPO's roles as models of their own, for full tuning: about four times the memory of one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignflow.models.loading import BaseModel, load_policy, load_reward_model
from alignflow.training.engine.token_logps import Head
from alignflow.training.rl.roles import (
    Sequences,
    backbone_states,
    head_values,
    last_token_scores,
    predicting,
    scalar_head,
)


class SeparateModels:
    """Policy, reference, and as far as they are needed reward and value model.

    Args:
        base: The base model.
        sft: Directory of the SFT artifact; None starts from the base.
        reward: Directory of the reward artifact; None where no reward comes from a model.
        dtype: Of the weights.
        value_model: `separate`, a model that starts from the reward model, or `policy`.
    """

    def __init__(
        self,
        base: BaseModel,
        sft: Path | None,
        reward: Path | None,
        *,
        dtype: str,
        value_model: str = "separate",
    ) -> None:
        self.model: Any = load_policy(base, sft, dtype=dtype, quantization=None)
        self._reference = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.policy_head, self.reference_head = Head.of(self.model), Head.of(self._reference)
        self._reward: Any = None
        width = self.model.config.get_text_config().hidden_size
        self.value_head = scalar_head(width, self.model.device)
        if reward is not None:
            self._reward = load_reward_model(base, reward, dtype=dtype, quantization=None)
            self._reward.eval().requires_grad_(False)
        self.value_reads_policy = value_model == "policy"
        self._value = None if self.value_reads_policy else self._value_backbone()
        self.trained_models = [self.model, *([] if self._value is None else [self._value])]

    def _value_backbone(self) -> Any:
        """A copy of the reward model without its head, which is copied too; or of the policy."""
        if self._reward is None:
            return copy.deepcopy(self.model.base_model).requires_grad_(True)
        self.value_head.weight.data.copy_(self._reward.score.weight)
        return copy.deepcopy(self._reward.base_model).requires_grad_(True)

    def policy_states(self, sequences: Sequences) -> Tensor:
        """[B, T, H]."""
        return predicting(backbone_states(self.model.base_model, sequences), sequences)

    @torch.no_grad()
    def reference_states(self, sequences: Sequences) -> Tensor:
        """[B, T, H]."""
        return predicting(backbone_states(self._reference.base_model, sequences), sequences)

    @torch.no_grad()
    def scores(self, sequences: Sequences) -> Tensor:
        """The reward model's, [B]."""
        states = backbone_states(self._reward.base_model, sequences)
        return last_token_scores(states, self._reward.score, sequences.attention)

    def values(self, sequences: Sequences, policy_states: Tensor) -> Tensor:
        """[B, T]."""
        if self._value is None:
            return head_values(self.value_head, policy_states)
        states = predicting(backbone_states(self._value, sequences), sequences)
        return head_values(self.value_head, states)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The policy in evaluation mode."""
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """What trains, by role."""
        value = [] if self._value is None else list(self._value.parameters())
        return {
            "policy": list(self.model.parameters()),
            "value": [*value, *self.value_head.parameters()],
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the weights."""
        value = [] if self._value is None else self._value.named_parameters()
        return {
            **self.policy_state(),
            **{f"value.{name}": p for name, p in value},
            "value_head.weight": self.value_head.weight,
        }

    def policy_state(self) -> dict[str, Tensor]:
        """Weights of the policy alone."""
        return {f"policy.{name}": p for name, p in self.model.named_parameters()}

    def policy_to_save(self) -> Any:
        """The policy."""
        return self.model
