"""A first estimate of the memory and disk that a run needs, and what this machine has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from alignflow.checking.architecture import (
    USUAL_LAYERS,
    Shape,
    adapted_modules,
    guessed_width,
)
from alignflow.checking.findings import Finding, error, warning
from alignflow.checking.merging import merged_bytes
from alignflow.checking.ppo_rules import model_count, trained_count
from alignflow.errors import DiskSpaceError
from alignflow.machine import SERVERS_BYTES
from alignflow.recipe import TRAINING_STAGES, PPOSection, Recipe, RewardedSection, TrainingSection
from alignflow.stages import (
    Record,
    available_bytes,
    first_micro_batch,
    has_gpu,
    largest_divisor,
    resolve_dtype,
)

GIB = 1024**3
FLOAT32_BYTES = 4
NF4_BYTES = 0.53
"""Four bits and the double-quantized scales, per parameter."""
MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""AdamW's two moments of one parameter. Paged ones need the GPU's memory only while they fit."""
ROUNDING_BYTES = 16
"""Float32 copies of a weight and its gradient, and random bits; of one weight at a time."""
LIBRARIES_BYTES = int(0.8 * GIB)
"""A process with torch, Transformers, PEFT and TRL; measured on CPU."""
BESIDE_LINEAR = 20
"""Values per token and hidden unit that norms, rotary positions, attention and residuals of a layer
keep, and gradients on their way; measured on toy models on CPU."""
USUAL_LINEAR = 20
"""Inputs and outputs of a layer's linear layers, per token and hidden unit, where none is known."""
EXPERTS_OF_A_TOKEN = 8
HEAD_TOKENS, HEAD_LOGITS = 4096, 32768
"""TRL's fused head computes logits in tiles of so many tokens and entries of the vocabulary."""
LOGIT_COPIES = 8.5
"""Float32 tiles held at once where the gradient of one is made of torch operations, as on CPU: logits,
scaled, log-probabilities, probabilities, what is the target, differences, products, gradient."""
PPO_HEAD_BYTES = 8 * 2**24
"""Of the tiles that `token_logps` holds."""
USUAL_VOCABULARY = 150_000
CHECKPOINTS = 2


class StageNeed(Record):
    """Peak memory of one stage, in bytes, with one row per forward pass and as first attempted."""

    stage: str
    weights_bytes: int
    trained_bytes: int
    one_row_bytes: int
    """Activations of one row of max_length; of both responses, for a pair."""
    one_row_head_bytes: int
    """Logits, as far as they are held at once, of one row."""
    head_bytes: int
    """Likewise of the rows of the first attempt."""
    first_rows: int
    """Rows per forward pass of the first attempt; out of memory, later ones take fewer."""
    first_bytes: int

    @property
    def least_bytes(self) -> int:
        """With a micro-batch of one."""
        fixed = self.weights_bytes + self.trained_bytes + LIBRARIES_BYTES
        return fixed + self.one_row_bytes + self.one_row_head_bytes


class Needs(Record):
    """What a run needs, and what is there."""

    device: str
    parameters: int
    trainable_parameters: int
    stages: list[StageNeed]
    disk_bytes: int
    memory_available_bytes: int | None
    disk_free_bytes: int


def needs_of(
    recipe: Recipe, shape: Shape, home: Path, *, download: bool, named: Mapping[str, Shape]
) -> Needs:
    """The estimate.

    Args:
        recipe: What is to run.
        shape: Of the base model.
        home: Where results go.
        download: Whether the base model has yet to be downloaded.
        named: Shapes of the models beside the base, by field of the recipe.
    """
    full = recipe.tuning.mode == "full"
    trainable = shape.parameters if full else shape.adapter_parameters(recipe.tuning)
    value_bytes = 2 if resolve_dtype(recipe) == "bfloat16" else 4
    return Needs(
        device="gpu" if has_gpu() else "cpu",
        parameters=shape.parameters,
        trainable_parameters=trainable,
        stages=[
            _stage_need(recipe, name, shape, trainable, value_bytes, named)
            for name in recipe.training_sections
        ],
        disk_bytes=_disk_bytes(recipe, shape, trainable)
        + (shape.weight_bytes if download else 0)
        + sum(other.weight_bytes for other in named.values() if other.from_name),
        memory_available_bytes=memory_available(),
        disk_free_bytes=shutil.disk_usage(nearest_directory(home)).free,
    )


def _frozen_bytes(recipe: Recipe, shape: Shape, value: int) -> int:
    """Weights of a model that does not train, in the compute type or quantized."""
    if recipe.tuning.mode != "qlora":
        return shape.parameters * value
    kept = shape.embedding_parameters if not shape.from_name else shape.parameters // 20
    return int((shape.parameters - kept) * NF4_BYTES + kept * 2)


def _stage_need(
    recipe: Recipe, name: str, shape: Shape, trainable: int, value: int, named: Mapping[str, Shape]
) -> StageNeed:
    section, weights = recipe.training_sections[name], _frozen_bytes(recipe, shape, value)
    ppo = section if isinstance(section, PPOSection) else None
    copies = model_count(ppo) if ppo else 2 if holds_reference(recipe, name) else 1
    if isinstance(section, RewardedSection) and not ppo and section.uses_reward_model:
        copies, weights = copies + 1, weights * 2  # the reward model is a copy of its own
    moving = trained_count(ppo) if ppo else 1
    kept, moved = kept_bytes(recipe), moved_bytes(recipe, section)
    if recipe.tuning.mode == "full":
        weights = shape.parameters * kept * copies
        trained = trainable * moving * (moved - kept)
        if recipe.tuning.weights_dtype == "bfloat16":
            trained += ROUNDING_BYTES * shape.embedding_parameters
    else:
        trained = trainable * (moved * moving + kept * (copies - moving))
    if ppo and recipe.tuning.mode == "lora" and value == FLOAT32_BYTES:
        weights += shape.parameters * value  # kept while the adapter is merged in to generate
    beside = [other for field, other in named.items() if field.startswith(f"{name}.")]
    weights += sum(_frozen_bytes(recipe, other, value) for other in beside)
    responses = 2 if TRAINING_STAGES[name].trains_on_pairs else 1
    tokens = section.max_length * responses
    row = _row_bytes(recipe, tokens, shape, value)
    batch = section.batch_size // (ppo.num_mini_batches if ppo else 1)
    allowed = first_micro_batch(recipe.compute, batch)
    rows = largest_divisor(batch, allowed, TRAINING_STAGES[name].least_micro_batch)
    of_one, head = (
        0 if name == "reward" else PPO_HEAD_BYTES if ppo else _head_bytes(read, shape, value)
        for read in (tokens, tokens * rows)
    )
    return StageNeed(
        stage=name,
        weights_bytes=weights,
        trained_bytes=trained,
        one_row_bytes=row,
        one_row_head_bytes=of_one,
        head_bytes=head,
        first_rows=rows,
        first_bytes=weights + trained + head + row * rows + LIBRARIES_BYTES,
    )


def holds_reference(recipe: Recipe, stage: str) -> bool:
    """Whether a stage holds a reference beside the policy.

    DPO computes its log-probabilities before the first step: with full tuning by the policy itself,
    with adapters by a frozen copy of the adapter.
    """
    held = TRAINING_STAGES[stage].reference
    return held == "always" or (held == "adapters" and recipe.tuning.mode != "full")


def kept_bytes(recipe: Recipe) -> int:
    """One trained parameter as it is kept."""
    return 2 if recipe.tuning.trained_dtype == "bfloat16" else 4


def moved_bytes(recipe: Recipe, section: TrainingSection) -> int:
    """One parameter while it trains: itself, its gradient and two moments."""
    return 2 * kept_bytes(recipe) + MOMENT_BYTES[section.optimizer]


def _row_bytes(recipe: Recipe, tokens: int, shape: Shape, value: int) -> int:
    """Activations of the tokens of one row, kept for the backward pass.

    Inputs and outputs of linear layers, what a layer keeps beside them, and what adapters in float32
    keep of inputs in another type. With checkpointing one layer's, and the hidden states between.
    """
    hidden = shape.hidden or guessed_width(shape.parameters)
    layers = shape.layers or USUAL_LAYERS
    kept = layers * BESIDE_LINEAR * hidden * value
    if shape.modules:
        kept += sum(sum(size) for size in _each_token(shape, shape.modules)) * value
    else:
        kept += layers * USUAL_LINEAR * hidden * value
    if recipe.tuning.mode != "full" and value < kept_bytes(recipe):
        adapted = _each_token(shape, adapted_modules(shape, recipe.tuning))
        kept += sum(inputs for _, inputs in adapted) * kept_bytes(recipe)
    asked = recipe.compute.gradient_checkpointing
    if has_gpu() if asked == "auto" else asked:
        kept = kept // layers + layers * hidden * value
    return tokens * kept


def _each_token(shape: Shape, names: Iterable[str]) -> list[tuple[int, int]]:
    """(outputs, inputs) of the linear layers that a token goes through: of few experts."""
    experts = {name: re.search(r"\bexperts\.(\d+)\.", name) for name in names}
    return [
        shape.modules[name]
        for name, expert in experts.items()
        if expert is None or int(expert[1]) < EXPERTS_OF_A_TOKEN
    ]


def _head_bytes(tokens: int, shape: Shape, value: int) -> int:
    """Logits of a tile: on a GPU one kernel makes the gradient of them in place."""
    rows = min(tokens, HEAD_TOKENS)
    if has_gpu():
        return rows * HEAD_LOGITS * value
    logits = rows * min(shape.vocabulary or USUAL_VOCABULARY, HEAD_LOGITS)
    return int(logits * FLOAT32_BYTES * LOGIT_COPIES)


def _disk_bytes(recipe: Recipe, shape: Shape, trainable: int) -> int:
    """Servers' files, artifacts and checkpoints; the merged model twice where MLflow is given a copy."""
    kept, sections = kept_bytes(recipe), recipe.training_sections.values()
    moved = (
        (moved_bytes(recipe, section) - kept)
        * (trained_count(section) if isinstance(section, PPOSection) else 1)
        for section in sections
    )
    checkpoint = trainable * max(moved, default=0)
    ppo = recipe.settings(PPOSection)
    best = CHECKPOINTS if ppo is not None and ppo.watch is not None else 0
    merged = merged_bytes(recipe, shape)
    trained = (len(sections) + best) * trainable * kept
    copies = 2 if recipe.tracking.upload == "merged" else 1
    return SERVERS_BYTES + trained + CHECKPOINTS * checkpoint + merged * copies + merged // 10


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
        return available_bytes()
    except (OSError, KeyError, ValueError):
        return None


def _gpu_memory() -> int | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = [
        "nvidia-smi",
        f"--id={visible}",
        "--query-gpu=memory.free",
        "--format=csv,noheader,nounits",
    ]
    try:
        free_mib = subprocess.run(
            query, capture_output=True, text=True, timeout=5, check=True
        ).stdout
        return int(free_mib.split()[0]) * 1024**2
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
