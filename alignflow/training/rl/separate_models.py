"""PPO's roles as models of their own, for full tuning: about four times the memory of one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alignflow.models import BaseModel, load_policy, load_reward_model
from alignflow.training.engine import Head
from alignflow.training.rl.roles import Roles, Sequences, backbone_states, scalar_head


class SeparateModels(Roles):
    """Policy, reference, and as far as they are needed reward and value model.

    Without the SFT artifact's directory `sft` it starts from the base; without the reward artifact's
    no reward comes from a model. A `separate` value model starts from the reward model.
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
        self.value_head = scalar_head(width, self.model.device, bias=True)
        if reward is not None:
            self._reward = load_reward_model(base, reward, dtype=dtype, quantization=None)
            self.reward_head = self._reward.eval().requires_grad_(False).score
        self.value_reads_policy = value_model == "policy"
        self._value = None if self.value_reads_policy else self._value_backbone()
        self.trained_models = [self.model, *([] if self._value is None else [self._value])]

    def _value_backbone(self) -> Any:
        """A copy of the reward model without its head, which is copied too; or of the policy."""
        if self._reward is None:
            return copy.deepcopy(self.model.base_model).requires_grad_(True)
        self.value_head.weight.data.copy_(self._reward.score.weight)
        self.value_is_reward = True
        return copy.deepcopy(self._reward.base_model).requires_grad_(True)

    def states(self, role: str, sequences: Sequences) -> Tensor:
        models = {"policy": self.model, "reference": self._reference, "reward": self._reward}
        backbone = self._value if role == "value" else models[role].base_model
        return backbone_states(backbone, sequences)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        value = [] if self._value is None else list(self._value.parameters())
        return {
            "policy": list(self.model.parameters()),
            "value": [*value, *self.value_head.parameters()],
        }

    def trainable_state(self) -> dict[str, Tensor]:
        value = [] if self._value is None else self._value.named_parameters()
        return {
            **self.policy_state(),
            **{f"value.{name}": p for name, p in value},
            "value_head.weight": self.value_head.weight,
            "value_head.bias": self.value_head.bias,
        }

    def policy_state(self) -> dict[str, Tensor]:
        return {f"policy.{name}": p for name, p in self.model.named_parameters()}
