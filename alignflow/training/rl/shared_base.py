"""Policy, reference, reward and value as adapters and two scalar heads on one frozen base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from alignflow.errors import ArtifactError
from alignflow.models import (
    BaseModel,
    check_adapter,
    load_adapter,
    load_base,
    new_adapter,
    put_adapter,
    quiet,
    trainable_in,
)
from alignflow.recipe import TuningSection
from alignflow.stages import ADAPTER, ADAPTER_WEIGHTS
from alignflow.training.engine import Head
from alignflow.training.rl.roles import Roles, Sequences, backbone_states, scalar_head

POLICY, REFERENCE, REWARD, VALUE = "default", "reference", "reward", "value"


class SharedBase(Roles):
    """Four adapters on one frozen base.

    Args:
        base: The base model, of all adapters.
        start: Directory of the adapter that the policy starts from, which stays as the reference;
            None starts from the base, and the reference is the base with its adapters off.
        reward: Directory of the reward artifact; None where no reward comes from a model.
        tuning: Rank and targets of a new policy adapter, where there is no `start`.
        dtype: Compute type.
        value_model: `separate`, an adapter that starts from the reward model's, or `policy`.
    """

    def __init__(
        self,
        base: BaseModel,
        start: Path | None,
        reward: Path | None,
        tuning: TuningSection,
        *,
        dtype: str,
        value_model: str = "separate",
    ) -> None:
        self.quantized = tuning.mode == "qlora"
        model = load_base(base, dtype=dtype, quantization="nf4" if self.quantized else None)
        if start is None:
            self.model: Any = new_adapter(model, tuning, "CAUSAL_LM")
        else:
            self.model = load_adapter(model, start, base, trainable=True)
            self._add(REFERENCE, start, base)
        self._has_reference = start is not None
        self.policy_head = self.reference_head = Head.of(self.model)
        width = self.model.config.get_text_config().hidden_size
        self.reward_head = scalar_head(width, self.model.device)
        self.value_head = scalar_head(width, self.model.device, bias=True)
        self.value_reads_policy = value_model == "policy"
        if reward is not None:
            self.reward_head.weight.data.copy_(self._add_scorer(REWARD, reward, base))
        if not self.value_reads_policy:
            self._add_value(reward, base)
        self.reward_head.requires_grad_(False)
        self._wanted = [
            (name, p, "lora_" in name and (_belongs(name, POLICY) or _belongs(name, VALUE)))
            for name, p in self.model.named_parameters()
        ]
        self._active = ""
        self._activate(POLICY)
        trainable_in(self.model, tuning.trained_dtype)
        self.trained_models = [self.model]

    def _add_scorer(self, name: str, reward: Path, base: BaseModel) -> Tensor:
        """Adds a reward artifact's adapter; returns the weight of its score head."""
        heads = self._add(name, reward / ADAPTER, base)
        if len(heads) != 1:
            raise ArtifactError(
                f"{reward / ADAPTER} has {len(heads)} score heads, a reward model has one. Train "
                "the reward stage with this version."
            )
        return heads[0]

    def _add(self, name: str, directory: Path, base: BaseModel) -> list[Tensor]:
        """Adds the adapter in a directory; returns the weights of its score heads."""
        check_adapter(directory, base)
        config: Any = LoraConfig.from_pretrained(str(directory))
        state = load_file(str(directory / ADAPTER_WEIGHTS))
        heads = [state.pop(key) for key in list(state) if key.endswith("score.weight")]
        self._demand_shared(directory, state)
        self._add_empty(name, config)
        put_adapter(self.model, state, directory, name)
        return heads

    def _demand_shared(self, directory: Path, state: dict[str, Tensor]) -> None:
        """Refuses an adapter that replaces weights of the base by others than are there."""
        held = self.model.state_dict()
        for key, tensor in state.items():
            if "lora_" in key:
                continue
            if key not in held or not torch.equal(held[key], tensor.to(held[key])):
                raise ArtifactError(
                    f"The adapter in {directory} replaces weights of the base ({key}), which PPO's "
                    "adapters share. Merge the adapter that all start from (`alignflow merge`), and "
                    "name the result as base_model."
                )

    def _add_empty(self, name: str, config: Any) -> None:
        config.task_type, config.modules_to_save = "CAUSAL_LM", None
        config.inference_mode, config.init_lora_weights = False, True
        with quiet():
            self.model.add_adapter(name, config)

    def _add_value(self, reward: Path | None, base: BaseModel) -> None:
        """A value adapter that starts from the reward model's, or from the policy's weights."""
        if reward is not None:
            self.value_head.weight.data.copy_(self._add_scorer(VALUE, reward, base))
            self.value_is_reward = True
            return
        with quiet():
            state = get_peft_model_state_dict(self.model, adapter_name=POLICY)
        own: Any = self.model.peft_config[POLICY]
        self._add_empty(VALUE, LoraConfig(**own.to_dict()))
        set_peft_model_state_dict(self.model, state, adapter_name=VALUE)

    def _activate(self, adapter: str) -> None:
        """Makes one adapter current. PEFT's switch also flips requires_grad, so it is set again."""
        if adapter == self._active:
            return
        self.model.set_adapter(adapter)
        self._active = adapter
        for _, parameter, wanted in self._wanted:
            parameter.requires_grad_(wanted)

    def states(self, role: str, sequences: Sequences) -> Tensor:
        backbone = self.model.base_model.model.base_model
        if role == REFERENCE and not self._has_reference:
            with self.model.disable_adapter():
                states = backbone_states(backbone, sequences)
            self._active = ""  # PEFT has touched requires_grad
            self._activate(POLICY)
            return states
        self._activate(POLICY if role == "policy" else role)
        return backbone_states(backbone, sequences)

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The policy in evaluation mode, merged into the base where that gives equal answers."""
        self._activate(POLICY)
        self.model.eval()
        folds = not self.quantized and self.model.dtype == torch.float32
        try:
            with merged_in_place(self.model, POLICY, fold=folds):
                yield self.model
        finally:
            self.model.train()

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        value = [p for name, p, wanted in self._wanted if wanted and _belongs(name, VALUE)]
        policy = [p for name, p, wanted in self._wanted if wanted and _belongs(name, POLICY)]
        return {"policy": policy, "value": [*value, *self.value_head.parameters()]}

    def trainable_state(self) -> dict[str, Tensor]:
        kept = {name: p for name, p, wanted in self._wanted if wanted}
        return {
            **kept,
            "value_head.weight": self.value_head.weight,
            "value_head.bias": self.value_head.bias,
        }

    def policy_state(self) -> dict[str, Tensor]:
        return {name: p for name, p, wanted in self._wanted if wanted and _belongs(name, POLICY)}

    def policy_to_save(self) -> Any:
        self._activate(POLICY)
        return self.model


def _belongs(name: str, adapter: str) -> bool:
    return f".{adapter}." in name or name.endswith(f".{adapter}")


@contextmanager
def merged_in_place(model: Any, adapter: str, *, fold: bool = True) -> Iterator[None]:
    """Adds an adapter to the base weights inside the block; afterwards they are what they were.

    A fifth faster to generate with. The weights are kept and put back, as subtracting what was
    added would not give the same bits. In less than float32 the sum would lose part of the adapter,
    and packed weights would have to be unpacked: leave `fold` off there.
    """
    if not fold:
        yield
        return
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    model.merge_adapter([adapter])
    try:
        yield
    finally:
        model.unmerge_adapter()
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
