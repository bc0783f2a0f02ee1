"""Stages whose losses or rows are their own end bit-identical when they are stopped and resumed.

SFT and DPO are killed for good in `test_training_stages`; checkpoints are the same for all.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from stage_runs import (
    cases,
    make_spec,
    prepare_spec,
    run_and_publish,
    run_stage,
    stopped_and_resumed,
    work_of,
    write_lines,
)

from alignflow.files import digest_directory
from alignflow.stages.artifacts import Artifact

LONG: dict[str, Any] = {
    "max_steps": 6,
    "save_steps": 2,
    "learning_rate": 1e-2,
    "compute": {"micro_batch_size": 4},
}
OWN: dict[str, dict[str, Any]] = {
    "pretrain": {"replay_share": 0.0, "max_length": 32},
    "orpo": {"tuning": {"dropout": 0.1}},
    "kto": {},
    "rloo": {"max_new_tokens": 4},
    "grpo": {"max_new_tokens": 4, "beta": 0.1},
    "rft": {"max_new_tokens": 40, "num_generations": 8},
    "distill": {"max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Artifact:
    folder = tmp_path_factory.mktemp("documents")
    rows = [{"text": f"rule {n}: thing {n} is number {n * n}."} for n in range(60)]
    source = write_lines(folder / "documents.jsonl", rows)
    return run_and_publish(prepare_spec(folder / "home", tiny_base, {"pretrain": source}))


def taught_otherwise(base: Path, folder: Path) -> Path:
    """A teacher with the base's tokens and other weights."""
    teacher = Path(shutil.copytree(base, folder / "teacher"))
    weights = load_file(str(teacher / "model.safetensors"))
    changed = {name: 1.5 * value for name, value in weights.items()}
    save_file(changed, str(teacher / "model.safetensors"), metadata={"format": "pt"})
    return teacher


@pytest.mark.parametrize("stage", cases(OWN, "pretrain", "kto", "grpo", "distill"))
def test_a_stopped_stage_continues_and_ends_bit_identical(
    prepared: Artifact,
    documents: Artifact,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    settings = {**LONG, **OWN[stage]}
    if stage in ("rloo", "grpo", "rft"):
        reward = tmp_path / "short.py"
        reward.write_text(
            "def short(prompts, responses, targets): return [-len(r) for r in responses]"
        )
        settings["rewards"] = [f"{reward}:short"]
    if stage == "distill":
        settings["teacher"] = taught_otherwise(tiny_base, tmp_path)
    data = documents if stage == "pretrain" else prepared
    whole = make_spec(data, tmp_path / "whole", stage, **settings)
    run_stage(whole)
    stopped = make_spec(data, tmp_path / "stopped", stage, **settings)
    stopped_and_resumed(stopped, 3, monkeypatch)
    folder = "model" if stage == "pretrain" else "adapter"
    assert digest_directory(work_of(stopped) / "output" / folder) == digest_directory(
        work_of(whole) / "output" / folder
    )
