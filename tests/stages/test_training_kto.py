"""KTO on ratings and on pairs, against TRL and after a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage_runs import (
    COLOURS,
    logged,
    make_spec,
    prepare_spec,
    question,
    run_and_publish,
    run_stage,
    work_of,
    write_lines,
)

from alignflow.data.stored import StoredRows
from alignflow.models.loading import load_base, load_tokenizer, quiet, read_base
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec
from alignflow.training.methods.kto import Collator, ranking_auc

Make = Callable[..., StageSpec]


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Artifact:
    """Sixty ratings, every third a dislike, one of them unreadable."""
    folder = tmp_path_factory.mktemp("ratings")
    rows: list[dict[str, Any]] = [
        {
            "prompt": question(n),
            "completion": "no idea" if n % 3 == 0 else f"it is {COLOURS[n % 8]}.",
            "label": n % 3 != 0,
        }
        for n in range(60)
    ]
    rows.append({"prompt": question(99), "completion": "it is red.", "label": "perhaps"})
    source = write_lines(folder / "ratings.jsonl", rows)
    return run_and_publish(prepare_spec(folder / "home", tiny_base, {"ratings": source}))


def test_the_auc_equals_numbers_worked_by_hand() -> None:
    """Liked 3 and 1 against disliked 2 and 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1, so 2.5 of 4."""
    assert ranking_auc([3, 1, 2, 1], [True, True, False, False]) == 2.5 / 4
    assert ranking_auc([3, 1], [True, True]) is None


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_ratings_are_learned_and_accounted_for(rated: Artifact, tmp_path: Path, mode: str) -> None:
    spec = make_spec(rated, tmp_path, "kto", mode=mode, learning_rate=2e-2, max_steps=12)
    result = run_stage(spec)
    output = work_of(spec) / "output"
    assert [path.name for path in output.iterdir()] == ["model" if mode == "full" else "adapter"]
    assert not list(output.rglob("ref"))
    assert result.rows is not None and result.rows.balanced
    assert result.rows.read == 61 and sum(result.rows.dropped.values()) == 1
    assert logged(spec, "loss")[0] == pytest.approx(0.5, abs=1e-3)
    assert all(math.isfinite(loss) for loss in logged(spec, "loss"))
    assert (result.metrics["rating_auc"] or 0) > 0.9


def test_pairs_are_taken_apart_where_there_are_no_ratings(training_spec: Make) -> None:
    result = run_stage(training_spec("kto"))
    assert result.rows is not None and result.rows.read == 60 and result.rows.balanced
    assert result.params["liked"] == result.rows.trained


def test_the_kl_term_pairs_each_prompt_with_the_response_before_it() -> None:
    rows = [
        {"prompt_ids": [1], "completion_ids": [2, 3], "label": True},
        {"prompt_ids": [4], "completion_ids": [5], "label": False},
    ]
    batch = Collator(0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch["KL_input_ids"].tolist() == [[1, 5, 0], [4, 2, 3]]


def test_the_loss_equals_trl_over_three_updates(rated: Artifact, tmp_path: Path) -> None:
    """All rows are in every batch, and this loss has no KL term, so that their order is the same."""
    from datasets import Dataset
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    rows = StoredRows.of(rated.directory / "ratings" / "train")
    shared: dict[str, Any] = {
        "loss_type": "apo_zero_unpaired",
        "undesirable_weight": 1.5,
        "beta": 0.3,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    spec = make_spec(
        rated,
        tmp_path / "ours",
        "kto",
        mode="full",
        batch_size=len(rows),
        warmup_ratio=0.0,
        compute={"micro_batch_size": len(rows)},
        **shared,
    )
    run_stage(spec)
    tokenizer = load_tokenizer(rated.directory)
    texts = [
        {
            "prompt": tokenizer.decode(row["prompt_ids"]),
            "completion": tokenizer.decode(row["completion_ids"][:-1]),
            "label": row["label"],
        }
        for row in rows
    ]
    arguments = KTOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(rows),
        logging_steps=1,
        max_length=64,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **shared,
    )
    with quiet():
        trainer = KTOTrainer(
            model=load_base(read_base(rated.directory), dtype="float32", quantization=None),
            ref_model=load_base(read_base(rated.directory), dtype="float32", quantization=None),
            args=arguments,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
        )
        trainer.train()
    stock = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert stock[2] < stock[0]
    assert logged(spec, "loss") == pytest.approx(stock, abs=1e-4)
