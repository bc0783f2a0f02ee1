"""PPO's four roles: policy, reference, reward and value.

With LoRA or QLoRA they are adapters and scalar heads on one frozen base, so the memory is that of
one model and a few per cent (`shared_base`). With full tuning they are separate models
(`separate_models`). Both give the same numbers as the models they stand for: nothing is averaged or
re-quantized.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignflow.models import head_values, last_attended
from alignflow.training.engine import Head
from alignflow.training.rl.reward_sources import RewardScale


class Sequences(NamedTuple):
    """Prompts padded on the left, responses on the right; B rollouts of P + T tokens."""

    tokens: Tensor
    """[B, P + T]."""
    attention: Tensor
    """1 on real tokens, [B, P + T]."""
    prompt_length: int
    """P."""

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        pad: int,
        device: torch.device,
    ) -> Sequences:
        before, after = max(map(len, prompts)), max(1, *map(len, responses))
        tokens, attention = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            left, right = before - len(prompt), after - len(response)
            tokens.append([pad] * left + [*prompt, *response] + [pad] * right)
            attention.append([0] * left + [1] * (len(prompt) + len(response)) + [0] * right)
        return cls(
            torch.tensor(tokens, device=device), torch.tensor(attention, device=device), before
        )

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own text, [B, P + T]."""
        return (self.attention.cumsum(dim=1) - 1).clamp(min=0)

    @property
    def responses(self) -> Tensor:
        """[B, T]."""
        return self.tokens[:, self.prompt_length :]

    @property
    def mask(self) -> Tensor:
        """1.0 on real response tokens, [B, T]."""
        return self.attention[:, self.prompt_length :].float()

    def rows(self, chosen: Tensor) -> Sequences:
        """Some of the rollouts, the padding that they share cut off."""
        tokens, attention = self.tokens[chosen], self.attention[chosen]
        used = attention.bool().any(dim=0).nonzero().flatten()
        start = min(int(used[0]), self.prompt_length - 1)
        stop = max(int(used[-1]) + 1, self.prompt_length + 1)
        return Sequences(
            tokens[:, start:stop], attention[:, start:stop], self.prompt_length - start
        )

    def by_length(self, chosen: Sequence[int], size: int) -> list[Tensor]:
        """Indices `chosen` in micro-batches of `size`, shortest first, so that they pad little."""
        lengths = self.attention.sum(dim=1).tolist()
        order = sorted(chosen, key=lambda row: (lengths[row], row))
        return list(torch.tensor(order, device=self.tokens.device).split(size))


class Roles(ABC):
    """What PPO asks of its four models. States are those that predict response tokens, [B, T, H]."""

    model: Any
    """The policy, for generation."""
    trained_models: list[Any]
    """All modules with weights that train."""
    policy_head: Head
    reference_head: Head
    reward_head: nn.Linear
    value_head: nn.Linear
    value_reads_policy: bool
    """Whether values are read off the policy's states, so that both share one forward pass."""
    value_is_reward = False
    """Whether the value model starts as a copy of the reward model, its head included."""

    @abstractmethod
    def states(self, role: str, sequences: Sequences) -> Tensor:
        """Last hidden states of `policy`, `reference`, `reward` or `value`, [B, P + T, H]."""

    @abstractmethod
    def generating(self) -> AbstractContextManager[Any]:
        """The policy in evaluation mode."""

    @abstractmethod
    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """What trains, by role, always in the same order."""

    @abstractmethod
    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the weights: policy and value model."""

    @abstractmethod
    def policy_state(self) -> dict[str, Tensor]:
        """Weights of the policy alone."""

    def policy_to_save(self) -> Any:
        """The model whose weights, or whose adapter `default`, are the policy."""
        return self.model

    def policy_states(self, sequences: Sequences) -> Tensor:
        return predicting(self.states("policy", sequences), sequences)

    @torch.no_grad()
    def reference_states(self, sequences: Sequences) -> Tensor:
        return predicting(self.states("reference", sequences), sequences)

    @torch.no_grad()
    def rescale_values(self, scale: RewardScale, weight: float) -> None:
        """Has the value head say `weight` standardized scores where it said plain ones.

        Values are learned in that scale, by steps that are clipped: in the reward model's own they
        would start far away.
        """
        self.value_head.bias.copy_(weight * scale.apply(self.value_head.bias))
        self.value_head.weight.mul_(weight / scale.std)

    @torch.no_grad()
    def scores(self, sequences: Sequences) -> Tensor:
        """The reward model's, at the last real token, [B]."""
        states = last_attended(self.states("reward", sequences), sequences.attention)
        return head_values(self.reward_head, states)

    def values(self, sequences: Sequences, policy_states: Tensor) -> Tensor:
        """[B, T]."""
        if self.value_reads_policy:
            return head_values(self.value_head, policy_states)
        states = predicting(self.states("value", sequences), sequences)
        return head_values(self.value_head, states)


def predicting(states: Tensor, sequences: Sequences) -> Tensor:
    """States from which each response token is predicted, [B, T, H]."""
    return states[:, sequences.prompt_length - 1 : -1]


def backbone_states(backbone: Any, sequences: Sequences) -> Tensor:
    """Last hidden states of a model without its head, [B, P + T, H]."""
    return backbone(
        input_ids=sequences.tokens,
        attention_mask=sequences.attention,
        position_ids=sequences.positions,
        use_cache=False,
    ).last_hidden_state


def scalar_head(width: int, device: torch.device, *, bias: bool = False) -> nn.Linear:
    """A head that says 0 of everything: what standardized rewards are on average."""
    head = nn.Linear(width, 1, bias=bias, device=device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head
