"""What PPO carries from one update to the next, and its certified checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignflow.errors import ArtifactError
from alignflow.stages import EventWriter
from alignflow.training.engine import certify, is_whole, newest_whole, rotate, step_of
from alignflow.training.rl.reward_sources import RewardScale
from alignflow.training.rl.roles import Roles
from alignflow.training.rl.watch import Watched


class State:
    """What changes from one update to the next, beside weights and random generators."""

    def __init__(self, kl_coef: float) -> None:
        self.update = 0
        self.kl_coef = kl_coef
        self.scales: dict[str, RewardScale] | None = None
        self.watched = Watched([])
        self.metrics: dict[str, float] = {}
        """Of the last update."""


def save_checkpoint(
    root: Path, roles: Roles, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Writes and certifies all that the next update depends on."""
    rest = {
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "update": state.update,
        "kl_coef": state.kl_coef,
        "scales": {source: tuple(scale) for source, scale in (state.scales or {}).items()},
        "watched": state.watched.history,
        "metrics": state.metrics,
    }
    save_weights(root, state.update, roles.trainable_state(), rest)


def save_weights(
    root: Path, update: int, weights: dict[str, Tensor], rest: dict[str, Any] | None = None
) -> None:
    """Writes and certifies weights and what stands beside them; of what is there the newest two stay."""
    directory = root / f"checkpoint-{update}"
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, directory / "weights.safetensors")
    if rest is not None:
        torch.save(rest, directory / "state.pt")
    certify(directory)
    rotate(root)


def resume(
    root: Path, roles: Roles, optimizer: torch.optim.Optimizer, state: State, events: EventWriter
) -> None:
    """Takes up the newest checkpoint that verifies, if there is one."""
    checkpoint = newest_whole(root)
    if checkpoint is None:
        return
    put_weights(roles.trainable_state(), checkpoint)
    saved: dict[str, Any] = torch.load(checkpoint / "state.pt", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    state.update, state.kl_coef = saved["update"], saved["kl_coef"]
    state.scales = {s: RewardScale(*scale) for s, scale in saved["scales"].items()} or None
    state.watched = Watched(saved["watched"])
    state.metrics = saved["metrics"]
    events.message(f"Continues from update {step_of(checkpoint)}.")


def put_weights(weights: dict[str, Tensor], checkpoint: Path) -> None:
    """Copies a checkpoint's weights into those of a model.

    Raises:
        ArtifactError: The checkpoint is damaged.
    """
    if not is_whole(checkpoint):
        raise ArtifactError(f"{checkpoint} is damaged. Delete the stage's work and run again.")
    saved = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(saved[name])
