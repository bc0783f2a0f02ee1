"""What `--write` leaves: the recipe that trains the recommended arm, and its prompt and index."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alignflow.deciding.arms import ARMS, SHOTS
from alignflow.deciding.recipes import recipe_of
from alignflow.files import atomic_write_json, atomic_write_text, read_json_lines
from alignflow.recipe import Configuration, Recipe, require_decide
from alignflow.retrieval import SETTINGS_FILE, SHOTS_FILE

RECIPE_FILE = "recipe.yaml"


def write_winner(decision: Mapping[str, Any], recipe: Recipe, folder: Path) -> list[str]:
    """Writes what the recommended arm needs into a folder; returns the commands that use it.

    Nothing is written where nothing is recommended.
    """
    arm = decision["recommended"]
    if arm is None:
        return []
    row, made = ARMS[arm], decision["made"][arm]
    configuration = Configuration.model_validate(decision["arms"][arm]["tried"])
    commands = []
    model = str(decision["base_model"])
    if row.trained:
        told = recipe_of(recipe, arm, configuration, made)
        atomic_write_text(folder / RECIPE_FILE, _as_yaml(told, decision["sentence"]))
        commands.append(f"alignflow run {shlex.quote(str(folder / RECIPE_FILE))}")
        model = "last"
    section = require_decide(recipe)
    if row.context == "retrieved":
        shutil.copytree(made["index"], folder, dirs_exist_ok=True)
        read = section.retrieval
        instructions = [configuration.instruction or "", read.instruction]
        chosen = {
            "passages": configuration.passages or read.passages,
            "instruction": "\n".join(filter(None, instructions)),
        }
        settings = read.model_copy(update=chosen).model_dump(mode="json")
        atomic_write_json(folder / SETTINGS_FILE, settings)
    if row.context == "few-shot":
        shots = read_json_lines(Path(made["training"]))[: configuration.shots or SHOTS]
        turns = [turn for shot in shots[::-1] for turn in shot["messages"]]
        atomic_write_text(folder / SHOTS_FILE, json.dumps(turns, indent=2) + "\n")
    grounded = f"--index {shlex.quote(str(folder))} " if row.context != "none" else ""
    commands.append(f'alignflow generate {shlex.quote(model)} {grounded}"your question"')
    return commands


def _as_yaml(recipe: Recipe, why: str) -> str:
    """A recipe file with the reason above it; what is as usual is left out."""
    fields = recipe.model_dump(mode="json", exclude_defaults=True)
    fields = {"name": recipe.name, **fields}
    return f"# {why}\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
