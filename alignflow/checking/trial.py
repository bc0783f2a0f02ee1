"""Whether a base model's architecture can do what the recipe asks, from its config alone.

A toy of it goes through one batch of each kind, in a child. The answer is kept in the home, by the
digest of the config and the libraries' versions, so that it costs seconds once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignflow.builtin import base_model_directory
from alignflow.checking.findings import Finding, error, note, warning
from alignflow.checking.model_files import read_config
from alignflow.checking.needs import nearest_directory
from alignflow.checking.sandbox import GIB, run_limited
from alignflow.errors import AlignflowError
from alignflow.files import atomic_write_json, digest_json
from alignflow.recipe import METHODS, PPOSection, Recipe
from alignflow.stages import has_gpu, library_versions

FIELD = "base_model"
SECONDS, MEMORY_BYTES = 120.0, 16 * GIB
"""Ten seconds are usual on a free core, most of them for libraries to load."""
TRIALS = 1
"""Raised when a trial changes what it asks."""
ATTEMPTS = "trials"


def trial_findings(recipe: Recipe, directory: Path, home: Path) -> list[Finding]:
    """What the architecture in a directory fails at, of what the recipe asks.

    Where no toy can be made of the config, that is a warning, and nothing is refused.
    """
    config = read_config(directory / "config.json")
    if config == read_config(base_model_directory("freight-base") / "config.json"):
        return []  # its own tests are the trial
    return list(_judged(recipe, config.get("model_type"), _answer(recipe, directory, config, home)))


def _answer(recipe: Recipe, directory: Path, config: dict[str, Any], home: Path) -> dict[str, Any]:
    """What the trial says; from the home where it was asked before."""
    attention = recipe.compute.attention
    versions = library_versions()
    asked = {"config": config, "attention": attention, "libraries": versions, "trials": TRIALS}
    file = home / "cache" / ATTEMPTS / f"{digest_json(asked)}.json"
    if file.is_file():
        return json.loads(file.read_text())
    try:
        answer = run_limited(
            "alignflow.checking.trial:tried",
            {"directory": str(directory), "attention": attention},
            seconds=SECONDS,
            memory_bytes=MEMORY_BYTES,
            what="The trial",
        )
    except AlignflowError as problem:
        return {"untried": problem.message}
    if os.access(
        nearest_directory(file.parent), os.W_OK
    ):  # a check of another's home writes nothing
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(file, answer)
    return answer


def tried(payload: dict[str, Any]) -> dict[str, Any]:
    """The trial; runs in the child. No toy is quantized, and bitsandbytes is half of the imports."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    import torch

    from alignflow.checking.toy_trial import try_out

    torch.set_num_threads(1)
    return try_out(payload)


def _judged(recipe: Recipe, kind: str | None, answer: dict[str, Any]) -> Iterator[Finding]:
    if "untried" in answer:
        yield warning(
            FIELD,
            f"a {kind} could not be tried at toy size ({answer['untried']}), so what it cannot do "
            "is not known before a stage meets it.",
        )
        return
    asked = _asked(recipe)
    for name, problem in answer["failed"].items():
        if name in asked:
            yield error(FIELD, f"a {kind} cannot be used: {name}: {problem}. {asked[name]}")
    if recipe.pretrain is not None and answer.get("packing") == "off":
        yield note(
            "pretrain",
            f"a {kind} cannot keep packed documents apart on a CPU; where the stage finds the same, "
            "each gets a row of its own.",
        )


def _asked(recipe: Recipe) -> dict[str, str]:
    """What the recipe asks of the architecture, by trial, and what to do where it fails."""
    another = "Take another base model."
    ppo = recipe.settings(PPOSection)
    samples = recipe.method in METHODS and METHODS[recipe.method].samples
    adapted = recipe.tuning.mode != "full" and recipe.tuning.target_modules == "all-linear"
    recomputes = recipe.compute.gradient_checkpointing
    wanted = {
        "model": (True, another),
        "attention": (True, "Leave compute.attention out."),
        "order": (True, another),
        "training": (True, another),
        "adapters": (adapted, "Name modules in tuning.target_modules, or take mode full."),
        "gradient_checkpointing": (
            has_gpu() if recomputes == "auto" else recomputes,
            "Set compute.gradient_checkpointing to false.",
        ),
        "generation": (bool(recipe.data.evaluation) or samples, another),
        "reward": (
            recipe.reward is not None,
            "Leave the reward model out (dpo needs none), or take another base.",
        ),
        "ppo": (ppo is not None, "Take another method, such as grpo."),
    }
    return {name: remedy for name, (needed, remedy) in wanted.items() if needed}
