"""PPO's four roles: policy, reference, reward and value.

With LoRA or QLoRA they are four adapters and two scalar heads on one frozen base, so the memory is
that of one model and a few per cent. With full tuning they are separate models. Both give the same
numbers as the models they stand for: nothing is averaged, merged or re-quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from peft import LoraConfig
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from alignflow.errors import ArtifactError
from alignflow.modeling import (
    ADAPTER,
    BaseModel,
    load_adapter,
    load_base,
    load_policy,
    load_reward_model,
    new_adapter,
    trainable_in,
)
from alignflow.recipe import TuningSection


class Sequences(NamedTuple):
    """Prompts padded on the left, responses on the right; B rollouts of P + T tokens."""

    tokens: Tensor
    """[B, P + T]."""
    attention: Tensor
    """1 on real tokens, [B, P + T]."""
    prompt_length: int
    """P."""

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
        start, stop = int(used[0]), int(used[-1]) + 1
        start = min(start, self.prompt_length - 1)
        return Sequences(
            tokens[:, start:stop], attention[:, start:stop], self.prompt_length - start
        )


class Roles(Protocol):
    """What PPO asks of its four models. Hidden states are those that predict response tokens."""

    model: Any
    """The policy, for generation."""

    def policy_logits(self, sequences: Sequences) -> Tensor: ...
    def reference_logits(self, sequences: Sequences) -> Tensor: ...
    def scores(self, sequences: Sequences) -> Tensor: ...
    def values(self, sequences: Sequences) -> Tensor: ...
    def generating(self) -> Any: ...
    def parameters(self) -> dict[str, list[nn.Parameter]]: ...
    def policy_to_save(self) -> Any: ...
    def trainable_state(self) -> dict[str, Tensor]: ...


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, [B, T], from logits [B, T, V]; computed in fp32."""
    logits = logits.float()
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def last_token_scores(hidden: Tensor, head: nn.Linear, attention: Tensor) -> Tensor:
    """Score at the last real token, [B]."""
    positions = torch.arange(attention.shape[1], device=attention.device)
    last = (attention * positions).argmax(dim=1)
    rows = torch.arange(len(last), device=last.device)
    return head(hidden[rows, last].to(head.weight.dtype)).squeeze(-1).float()


def _predicting(states: Tensor, sequences: Sequences) -> Tensor:
    """States from which each response token is predicted, [B, T, ...]."""
    return states[:, sequences.prompt_length - 1 : -1]


def _backbone(model: Any, sequences: Sequences) -> Tensor:
    return model(
        input_ids=sequences.tokens,
        attention_mask=sequences.attention,
        position_ids=sequences.positions,
        use_cache=False,
    ).last_hidden_state


class SharedBase:
    """Four adapters on one frozen base.

    Args:
        base: The base model, of both adapters.
        sft: Directory of the SFT artifact; None starts the policy from the base, and the
            reference is the base with its adapters off.
        reward: Directory of the reward artifact.
        tuning: Rank and targets of a new policy adapter, where there is no SFT.
        dtype: Compute type.
        quantization: `nf4` or None.
    """

    def __init__(
        self,
        base: BaseModel,
        sft: Path | None,
        reward: Path,
        tuning: TuningSection,
        *,
        dtype: str,
        quantization: str | None,
    ) -> None:
        model = load_base(base, dtype=dtype, quantization=quantization)
        if sft is None:
            self.model: Any = new_adapter(model, tuning, "CAUSAL_LM")
        else:
            self.model = load_adapter(model, sft / ADAPTER, base, trainable=True)
        self._policy = self.model.active_adapter
        self._reference = None
        if sft is not None:
            self._reference = "reference"
            self.model.load_adapter(str(sft / ADAPTER), "reference", is_trainable=False)
        self.reward_head = self._add_scoring_adapter(reward / ADAPTER, "reward")
        self.value_head = self._add_scoring_adapter(reward / ADAPTER, "value")
        self._active = ""
        self._activate(self._policy)
        trainable_in(self.model, tuning.adapter_dtype)

    def _add_scoring_adapter(self, directory: Path, name: str) -> nn.Linear:
        """Adds a sequence-classification adapter to the language model; returns its head."""
        config: Any = LoraConfig.from_pretrained(str(directory))
        config.task_type, config.modules_to_save = "CAUSAL_LM", None
        config.inference_mode = False
        state = load_file(str(directory / "adapter_model.safetensors"))
        heads = {key: state.pop(key) for key in list(state) if key.endswith("score.weight")}
        if len(heads) != 1:
            raise ArtifactError(
                f"{directory} has {len(heads)} score heads; a reward adapter has one. Train the "
                "reward stage with this version."
            )
        self.model.add_adapter(name, config)
        outcome = set_peft_model_state_dict(self.model, state, adapter_name=name)
        if outcome.unexpected_keys:
            raise ArtifactError(
                f"{directory}: {outcome.unexpected_keys[0]} does not fit the policy's base. The "
                "reward model was trained on another base; train both in one recipe."
            )
        (weight,) = heads.values()
        head = nn.Linear(weight.shape[1], 1, bias=False, device=self.model.device)
        head.weight.data.copy_(weight)
        return head

    def _activate(self, adapter: str | None) -> None:
        """Makes one adapter current. PEFT's switch also flips requires_grad, so it is set again."""
        if adapter is not None and adapter != self._active:
            self.model.set_adapter(adapter)
            self._active = adapter
        trained = (f".{self._policy}.", ".value.")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name and any(part in name for part in trained))

    def _hidden(self, adapter: str | None, sequences: Sequences) -> Tensor:
        backbone = self.model.base_model.model.model
        if adapter is None:
            with self.model.disable_adapter():
                hidden = _backbone(backbone, sequences)
            self._active = ""
            self._activate(self._policy)
            return hidden
        self._activate(adapter)
        return _backbone(backbone, sequences)

    def policy_logits(self, sequences: Sequences) -> Tensor:
        """[B, T, V]."""
        hidden = _predicting(self._hidden(self._policy, sequences), sequences)
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def reference_logits(self, sequences: Sequences) -> Tensor:
        """[B, T, V]."""
        hidden = _predicting(self._hidden(self._reference, sequences), sequences)
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def scores(self, sequences: Sequences) -> Tensor:
        """The reward model's, [B]."""
        return last_token_scores(
            self._hidden("reward", sequences), self.reward_head, sequences.attention
        )

    def values(self, sequences: Sequences) -> Tensor:
        """[B, T]."""
        hidden = _predicting(self._hidden("value", sequences), sequences)
        return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The policy in evaluation mode."""
        self._activate(self._policy)
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """What trains, by role, always in the same order."""
        named = dict(self.model.named_parameters())
        return {
            "policy": [p for name, p in named.items() if f".{self._policy}." in name],
            "value": [
                *(p for name, p in named.items() if ".value." in name),
                *self.value_head.parameters(),
            ],
        }

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the weights: policy and value model."""
        named = dict(self.model.named_parameters())
        kept = {
            name: p for name, p in named.items() if f".{self._policy}." in name or ".value." in name
        }
        return {**kept, "value_head.weight": self.value_head.weight}

    def policy_to_save(self) -> Any:
        """The model whose `default` adapter is the policy."""
        self._activate(self._policy)
        return self.model


class SeparateModels:
    """Four models of their own, for full tuning: about four times the memory."""

    def __init__(self, base: BaseModel, sft: Path | None, reward: Path, *, dtype: str) -> None:
        self.model: Any = load_policy(base, sft, dtype=dtype, quantization=None)
        self._reference = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._reward: Any = load_reward_model(base, reward, dtype=dtype, quantization=None)
        self._value = copy.deepcopy(self._reward)
        self._reward.eval().requires_grad_(False)

    def policy_logits(self, sequences: Sequences) -> Tensor:
        """[B, T, V]."""
        return self._logits(self.model, sequences)

    @torch.no_grad()
    def reference_logits(self, sequences: Sequences) -> Tensor:
        """[B, T, V]."""
        return self._logits(self._reference, sequences)

    def _logits(self, model: Any, sequences: Sequences) -> Tensor:
        hidden = _predicting(_backbone(model.model, sequences), sequences)
        return model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def scores(self, sequences: Sequences) -> Tensor:
        """The reward model's, [B]."""
        hidden = _backbone(self._reward.model, sequences)
        return last_token_scores(hidden, self._reward.score, sequences.attention)

    def values(self, sequences: Sequences) -> Tensor:
        """[B, T]."""
        hidden = _predicting(_backbone(self._value.model, sequences), sequences)
        return self._value.score(hidden).squeeze(-1).float()

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
        return {"policy": list(self.model.parameters()), "value": list(self._value.parameters())}

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the weights."""
        return {
            **{f"policy.{name}": p for name, p in self.model.named_parameters()},
            **{f"value.{name}": p for name, p in self._value.named_parameters()},
        }

    def policy_to_save(self) -> Any:
        """The policy."""
        return self.model


def load_roles(
    base: BaseModel,
    sft: Path | None,
    reward: Path,
    tuning: TuningSection,
    *,
    dtype: str,
) -> Roles:
    """The four roles, as the recipe's tuning keeps them."""
    if tuning.mode == "full":
        return SeparateModels(base, sft, reward, dtype=dtype)
    quantization = "nf4" if tuning.mode == "qlora" else None
    return SharedBase(base, sft, reward, tuning, dtype=dtype, quantization=quantization)
