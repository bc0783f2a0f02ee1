"""What no method may do: let the micro-batch, which a retry halves, change what is learned.

One pass over rows of unequal length, the last update of it short, so that a mean of means differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from stage_runs import (
    COLOURS,
    cases,
    make_spec,
    prepare_spec,
    question,
    run_and_publish,
    run_stage,
    work_of,
    write_lines,
)

from alignflow.stages.artifacts import Artifact

ANSWERED: dict[str, Any] = {"max_new_tokens": 16, "max_steps": 2}
GROUPED: dict[str, Any] = {**ANSWERED, "num_generations": 4, "batch_size": 16}
DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain", {}),
    "sft": ("sft", {}),
    "reward": ("reward", {}),
    "dpo": ("dpo", {}),
    "dpo of every loss": ("dpo", {"loss_type": list(DPO_LOSSES), "label_smoothing": 0.1}),
    "orpo": ("orpo", {}),
    "simpo": ("simpo", {"nll_weight": 0.5}),
    "kto without its KL term": ("kto", {"loss_type": "apo_zero_unpaired"}),
    "ppo": ("ppo", {**ANSWERED, "batch_size": 16, "nll_weight": 0.5}),
    "rloo": ("rloo", GROUPED),
    "grpo": ("grpo", {**GROUPED, "beta": 0.1}),
    "grpo by bnpo": ("grpo", {**GROUPED, "loss_type": "bnpo"}),
    "rft": ("rft", ANSWERED | {"num_generations": 2}),
    "distill": ("distill", ANSWERED),
}
"""Left out: KTO's KL and DPO's aot losses, which compare the rows of a micro-batch; `check` says so."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Artifact:
    """Rows of many lengths."""
    folder = tmp_path_factory.mktemp("uneven")

    def said(n: int) -> str:
        return " and ".join(COLOURS[(n + k) % 8] for k in range(1 + n % 5))

    rows = [(question(n), said(n), "no" + " idea" * (n % 4)) for n in range(27)]
    sources = {
        "sft": [{"prompt": asked, "completion": good} for asked, good, _ in rows],
        "preferences": [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in rows],
        "pretrain": [{"text": f"{asked} {good}"} for asked, good, _ in rows],
    }
    files = {part: write_lines(folder / f"{part}.jsonl", of) for part, of in sources.items()}
    return run_and_publish(prepare_spec(folder / "home", tiny_base, files))


@pytest.fixture(scope="module")
def longest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward that no two lengths share."""
    path = tmp_path_factory.mktemp("reward") / "longest.py"
    path.write_text(
        "def longest(prompts, responses, targets):\n"
        "    return [len(response) + sum(map(ord, response)) / 1e4 for response in responses]\n"
    )
    return f"{path}:longest"


@pytest.fixture(scope="module")
def tuned(uneven: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An adapter that has begun to end its responses, some sooner than others."""
    home = tmp_path_factory.mktemp("tuned")
    return run_and_publish(make_spec(uneven, home, "sft", learning_rate=2e-2, max_steps=30))


@pytest.mark.parametrize(
    "case",
    cases(
        CASES,
        "sft",
        "dpo",
        "dpo of every loss",
        "reward",
        "pretrain",
        "grpo",
        "kto without its KL term",
    ),
)
def test_the_micro_batch_changes_nothing(
    case: str, uneven: Artifact, tuned: Artifact, tiny_base: Path, longest: str, tmp_path: Path
) -> None:
    stage, section = CASES[case]
    options: dict[str, Any] = {"max_steps": None, "num_train_epochs": 1, **section}
    if stage in ("ppo", "rloo", "grpo", "rft"):
        options["rewards"] = [longest]
    if stage == "distill":
        options["teacher"] = tiny_base
    if stage not in ("pretrain", "sft"):
        options["sft"] = tuned
    weights = []
    for size in (16, 4):
        compute = {"micro_batch_size": size}
        spec = make_spec(uneven, tmp_path / str(size), stage, compute=compute, **options)
        run_stage(spec)
        saved = next((work_of(spec) / "output").rglob("*.safetensors"))
        weights.append(load_file(saved))
    whole, parts = weights
    worst = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
    assert worst < 1e-6
