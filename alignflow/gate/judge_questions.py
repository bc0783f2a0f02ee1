"""The questions to a judge that is a model, and the spec of the stage that answers them. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from alignflow.files import atomic_write_text, digest_json
from alignflow.gate.judge import MODEL_FIELD, judge_name
from alignflow.recipe import Recipe, require_retrain
from alignflow.recipe.resolve import resolve_base_model
from alignflow.stages.device import resolve_dtype
from alignflow.stages.spec import StageSpec

Question = tuple[str, str, str]
"""Prompt, first and second response."""


def judge_spec(recipe: Recipe, home: Path, questions: Sequence[Question]) -> StageSpec:
    """Has the recipe's judge model answer; the same questions to the same model are Cached.

    Raises:
        RecipeError: The model is not there.
    """
    section = require_retrain(recipe).judge
    assert section is not None and section.model is not None
    model = resolve_base_model(section.model, MODEL_FIELD)
    digest = digest_json(questions)
    return StageSpec(
        stage="judge",
        home=str(home),
        params={
            "name": judge_name(section),
            "instruction": section.instruction,
            "model": {"source": section.model.source, "digest": model.digest},
            "dtype": resolve_dtype(recipe),
            "questions": digest,
        },
        seed=0,
        compute=recipe.compute.model_dump(mode="json"),
        paths={
            "questions": str(_written(home, digest, questions)),
            **({"model": model.path} if model.path else {}),
        },
    )


def _written(home: Path, digest: str, questions: Sequence[Question]) -> Path:
    path = home / "work" / "judge" / f"{digest[:16]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "".join(json.dumps(asked) + "\n" for asked in questions))
    return path


def read_questions(spec: StageSpec) -> list[Question]:
    """What `judge_spec` wrote."""
    lines = Path(spec.paths["questions"]).read_text().splitlines()
    return [(prompt, first, second) for prompt, first, second in map(json.loads, lines)]
