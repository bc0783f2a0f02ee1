"""`trainer_args` against TRL's configuration classes, read from their source and not imported."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from alignflow.checking.findings import Finding, error

CONFIGS = {
    "pretrain": ("trl/trainer/sft_config.py", "SFTConfig"),
    "sft": ("trl/trainer/sft_config.py", "SFTConfig"),
    "reward": ("trl/trainer/reward_config.py", "RewardConfig"),
    "dpo": ("trl/trainer/dpo_config.py", "DPOConfig"),
    "kto": ("trl/trainer/kto_config.py", "KTOConfig"),
    "rloo": ("trl/trainer/rloo_config.py", "RLOOConfig"),
    "grpo": ("trl/trainer/grpo_config.py", "GRPOConfig"),
    "orpo": ("transformers/training_args.py", "TrainingArguments"),
    "simpo": ("transformers/training_args.py", "TrainingArguments"),
}
PARENTS = (
    ("trl/trainer/base_config.py", "_BaseConfig"),
    ("transformers/training_args.py", "TrainingArguments"),
)
LAYER = Path(__file__).parents[1] / "training" / "common.py"


def trainer_argument_findings(stage: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    """Arguments that the stage's class does not have, or that the recipe sets elsewhere."""
    if not given or stage not in CONFIGS:
        return
    known, reserved = known_arguments(stage), reserved_arguments()
    for name, value in given.items():
        field = f"{stage}.trainer_args.{name}"
        if name in reserved:
            yield error(field, f"is set by {reserved[name]}; leave it out.")
        elif known and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {close[0]}?" if close else " Check its name."
            yield error(field, f"(here {value!r}) is no argument of {CONFIGS[stage][1]}.{meant}")


@cache
def known_arguments(stage: str) -> frozenset[str]:
    """Names of the fields of a stage's configuration class, those it inherits included."""
    own = CONFIGS[stage]
    classes = (own,) if own in PARENTS else (own, *PARENTS)
    return frozenset(name for file, kind in classes for name in _fields(file, kind))


def _fields(file: str, kind: str) -> Iterator[str]:
    package, _, rest = file.partition("/")
    found = importlib.util.find_spec(package)  # does not import a top-level package
    if found is None or not found.submodule_search_locations:
        return
    path = Path(found.submodule_search_locations[0]) / rest
    if not path.is_file():
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield part.target.id


@cache
def reserved_arguments() -> Mapping[str, str]:
    """Arguments that the training layer sets, and from which field."""
    for node in ast.parse(LAYER.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "RESERVED" for target in node.targets
        ):
            return ast.literal_eval(node.value)
    return {}
