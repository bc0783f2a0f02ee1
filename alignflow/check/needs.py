"""A first estimate of the memory and disk that a run needs, and what this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from alignflow.check.architecture import USUAL_LAYERS, Shape, guessed_width
from alignflow.check.findings import Finding, error, warning
from alignflow.device import has_gpu, resolve_dtype
from alignflow.errors import DiskSpaceError
from alignflow.recipe import Recipe, TrainingSection
from alignflow.stage import Record

GIB = 1024**3
NF4_BYTES = 0.53
"""Four bits and the double-quantized scales, per parameter."""
TRAINED_BYTES = 16
"""A float32 parameter that trains: itself, its gradient and two moments of AdamW."""
LIBRARIES_BYTES = int(1.2 * GIB)
"""A process with torch, Transformers, PEFT and TRL; measured on CPU."""
ACTIVATIONS_PER_LAYER = 34
"""Bytes per token and hidden unit of one layer at two bytes a value (Korthikanti et al. 2022)."""
HEAD_TOKENS = 1024
"""TRL's fused head computes logits in tiles; about so many tokens' logits are held at once."""
USUAL_VOCABULARY = 150_000
CHECKPOINTS = 2


class StageNeed(Record):
    """Peak memory of one stage, in bytes, with one row per forward pass and with a whole batch."""

    stage: str
    weights_bytes: int
    trained_bytes: int
    one_row_bytes: int
    """Activations of one row of max_length; of both responses, for a pair."""
    head_bytes: int
    """Logits, as far as they are held at once."""
    whole_batch_bytes: int

    @property
    def least_bytes(self) -> int:
        """With a micro-batch of one."""
        fixed = self.weights_bytes + self.trained_bytes + self.head_bytes + LIBRARIES_BYTES
        return fixed + self.one_row_bytes


class Needs(Record):
    """What a run needs, and what is there."""

    device: str
    parameters: int
    trainable_parameters: int
    stages: list[StageNeed]
    disk_bytes: int
    memory_available_bytes: int | None
    disk_free_bytes: int


def needs_of(recipe: Recipe, shape: Shape, home: Path, *, download: bool) -> Needs:
    """The estimate.

    Args:
        recipe: What is to run.
        shape: Of the base model.
        home: Where results go.
        download: Whether the base model has yet to be downloaded.
    """
    full = recipe.tuning.mode == "full"
    trainable = shape.parameters if full else shape.adapter_parameters(recipe.tuning)
    value_bytes = 2 if resolve_dtype(recipe) == "bfloat16" else 4
    return Needs(
        device="gpu" if has_gpu() else "cpu",
        parameters=shape.parameters,
        trainable_parameters=trainable,
        stages=[
            _stage_need(recipe, name, getattr(recipe, name), shape, trainable, value_bytes)
            for name in ("sft", "reward", "dpo", "ppo")
            if getattr(recipe, name) is not None
        ],
        disk_bytes=_disk_bytes(recipe, shape, trainable) + (shape.weight_bytes if download else 0),
        memory_available_bytes=memory_available(),
        disk_free_bytes=shutil.disk_usage(nearest_directory(home)).free,
    )


def _stage_need(
    recipe: Recipe, name: str, section: TrainingSection, shape: Shape, trainable: int, value: int
) -> StageNeed:
    if recipe.tuning.mode == "qlora":
        kept = shape.embedding_parameters if not shape.from_name else shape.parameters // 20
        weights = int((shape.parameters - kept) * NF4_BYTES + kept * 2)
    else:
        weights = shape.parameters * value
    copies = {"dpo": 2, "ppo": 4}.get(name, 1)
    if recipe.tuning.mode == "full":
        weights *= copies if name in ("dpo", "ppo") else 1
        trained = trainable * (TRAINED_BYTES - value)
    else:
        moving = 2 if name == "ppo" else 1
        trained = trainable * (TRAINED_BYTES * moving + 4 * (copies - moving))
    responses = 2 if name in ("dpo", "reward") else 1
    row = _row_bytes(recipe, section.max_length, shape, value) * responses
    head = 0 if name == "reward" else HEAD_TOKENS * (shape.vocabulary or USUAL_VOCABULARY) * 4
    micro = recipe.compute.micro_batch_size
    rows = section.batch_size if micro == "auto" else min(micro, section.batch_size)
    return StageNeed(
        stage=name,
        weights_bytes=weights,
        trained_bytes=trained,
        one_row_bytes=row,
        head_bytes=head,
        whole_batch_bytes=weights + trained + head + row * rows + LIBRARIES_BYTES,
    )


def _row_bytes(recipe: Recipe, tokens: int, shape: Shape, value: int) -> int:
    """Activations of one row."""
    hidden = shape.hidden or guessed_width(shape.parameters)
    layers = shape.layers or USUAL_LAYERS
    asked = recipe.compute.gradient_checkpointing
    checkpointing = has_gpu() if asked == "auto" else asked
    layer = ACTIVATIONS_PER_LAYER * hidden * value // 2
    inside = layers * hidden * value + layer if checkpointing else layers * layer
    return tokens * inside


def _disk_bytes(recipe: Recipe, shape: Shape, trainable: int) -> int:
    """Artifacts and checkpoints; the merged model is written once more for its certificate's sake."""
    policies = [
        name for name in ("sft", "reward", "dpo", "ppo") if getattr(recipe, name) is not None
    ]
    checkpoint = trainable * (TRAINED_BYTES - 4)
    merged = shape.weight_bytes if recipe.merge is not None else 0
    return len(policies) * trainable * 4 + CHECKPOINTS * checkpoint + merged + merged // 10


def need_findings(needs: Needs, *, guessed: bool) -> Iterator[Finding]:
    """Where the machine has less than the estimate."""
    have = needs.memory_available_bytes
    for stage in needs.stages:
        if have is not None and stage.least_bytes > have:
            where = "on the GPU" if needs.device == "gpu" else "of memory"
            yield warning(
                stage.stage,
                f"needs about {gib(stage.least_bytes)} with one row per forward pass; there are "
                f"{gib(have)} {where} here. Take mode qlora, a smaller model or max_length, or "
                "another machine.",
            )
    if needs.disk_bytes > needs.disk_free_bytes:
        text = (
            f"the run writes about {gib(needs.disk_bytes)}, {gib(needs.disk_free_bytes)} are free. "
            "Free some, or name another --home."
        )
        yield warning("", text) if guessed else error("", text, DiskSpaceError)


def memory_available() -> int | None:
    """Free memory of the first GPU if there is one, else of this machine or its container."""
    if has_gpu():
        return _gpu_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    limit = _container_limit()
    return min(kib * 1024, limit) if limit else kib * 1024


def _container_limit() -> int | None:
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return None
    return max(limit - used, 0)


def _gpu_memory() -> int | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = [
        "nvidia-smi",
        f"--id={visible}",
        "--query-gpu=memory.free",
        "--format=csv,noheader,nounits",
    ]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        return int(found.split()[0]) * 1024**2
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def nearest_directory(path: Path) -> Path:
    """`path` or the first parent that exists."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def gib(size: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", GIB), ("MiB", 1024**2)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"
