"""A tiny base model, rows of every kind, and specs of stages on them, without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage_runs import (
    COLOURS,
    build_tiny_base,
    make_spec,
    prepare_spec,
    question,
    run_and_publish,
    write_lines,
)

from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of demonstrations, pairs, evaluation prompts and general text."""
    folder = tmp_path_factory.mktemp("rows")
    return {
        "sft": write_lines(
            folder / "sft.jsonl",
            [{"prompt": question(n), "completion": f"it is {COLOURS[n % 8]}."} for n in range(48)],
        ),
        "preferences": write_lines(
            folder / "pairs.jsonl",
            [
                {
                    "prompt": question(n),
                    "chosen": f"it is {COLOURS[n % 8]}.",
                    "rejected": "no" + " idea" * (n % 3),
                }
                for n in range(60)
            ],
        ),
        "evaluation": write_lines(
            folder / "evaluation.jsonl",
            [{"prompt": question(n), "target": COLOURS[n % 8]} for n in range(100, 108)],
        ),
        "general": write_lines(folder / "general.jsonl", [{"text": "grass is green. " * 3}] * 4),
    }


@pytest.fixture(scope="session")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_rows: dict[str, Path]
) -> Artifact:
    """The prepare artifact of the tiny job."""
    home = tmp_path_factory.mktemp("home")
    return run_and_publish(prepare_spec(home, tiny_base, tiny_rows))


@pytest.fixture(scope="session")
def sft_artifact(prepared: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A finished SFT adapter on the tiny job."""
    home = tmp_path_factory.mktemp("sft-home")
    return run_and_publish(make_spec(prepared, home, "sft"))


@pytest.fixture
def training_spec(prepared: Artifact, tmp_path: Path) -> Callable[..., StageSpec]:
    """Makes the spec of a training stage on the tiny job."""

    def make(stage: str, *, home: Path = tmp_path, **options: Any) -> StageSpec:
        return make_spec(prepared, home, stage, **options)

    return make
