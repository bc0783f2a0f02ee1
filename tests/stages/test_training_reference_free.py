"""ORPO and SimPO: their losses by hand and against TRL's, and their stages on the tiny model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from stage_runs import STOCK_TRAINER, logged, logs_of, run_and_publish, run_stage, work_of

from alignflow.data.stored import StoredRows
from alignflow.models.loading import load_base, load_tokenizer, read_base
from alignflow.stages.artifacts import Artifact
from alignflow.stages.spec import StageSpec
from alignflow.training.engine.reference_free import Collator
from alignflow.training.methods.orpo import log_odds_ratio, log_one_minus_exp, odds_ratio_loss
from alignflow.training.methods.simpo import simpo_loss

Make = Callable[..., StageSpec]
STEPS = 3


def test_the_odds_ratio_loss_equals_numbers_worked_by_hand() -> None:
    """p = 1/2 and 1/4: odds 1 and 1/3, ratio 3, sigmoid(log 3) = 3/4. p equal: sigmoid(0) = 1/2."""
    chosen, rejected = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.1]).log()
    assert log_odds_ratio(chosen, rejected).tolist() == pytest.approx([math.log(3), 0], abs=1e-6)
    assert odds_ratio_loss(chosen, rejected, 0.1).tolist() == pytest.approx(
        [-0.1 * math.log(3 / 4), 0.1 * math.log(2)], abs=1e-6
    )


def test_the_simpo_loss_equals_numbers_worked_by_hand() -> None:
    """beta 2, gamma 1: 2 * 0.5 - 1 = 0, so log 2; without gamma log(1 + 1/e), smoothed by 0.1."""
    chosen, rejected = torch.tensor([-0.5]), torch.tensor([-1.0])
    assert float(simpo_loss(chosen, rejected, 2.0, 1.0)) == pytest.approx(math.log(2))
    expected = 0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.e)
    assert float(simpo_loss(chosen, rejected, 2.0, 0.0, 0.1)) == pytest.approx(expected)


def test_log_one_minus_exp_is_exact_and_its_gradient_finite_from_sure_to_impossible() -> None:
    values = torch.tensor([-50.0, -1.0, -0.7, -0.6, -1e-3, 0.0], requires_grad=True)
    found = log_one_minus_exp(values)
    for at in range(1, 5):
        exact = math.log(-math.expm1(float(values[at].detach())))
        assert float(found[at].detach()) == pytest.approx(exact, rel=1e-5)
    found.sum().backward()
    assert values.grad is not None and bool(torch.isfinite(values.grad).all())


def test_a_batch_holds_chosen_then_demonstrations_then_rejected() -> None:
    pair = {
        "chosen_ids": [5, 6, 7],
        "chosen_mask": [0, 0, 1],
        "rejected_ids": [5, 6, 8, 9],
        "rejected_mask": [0, 0, 1, 1],
    }
    alone = {"chosen_ids": [5, 4], "chosen_mask": [1, 1], "rejected_ids": [], "rejected_mask": []}
    batch = Collator(0, nll_on_prompt=False)([alone, pair])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [5, 4, 0, 0], [5, 6, 8, 9]]
    assert batch["nll"].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["labels"][2].tolist() == [-100, -100, 8, 9]
    with_prompt = Collator(0, nll_on_prompt=True)([alone, pair])
    assert with_prompt["nll"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert with_prompt["response"].tolist()[0] == [0, 0, 1, 0]


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
@pytest.mark.parametrize("stage", ["orpo", "simpo"])
def test_each_method_trains_in_each_mode_and_accounts_for_every_row(
    training_spec: Make, stage: str, mode: str
) -> None:
    spec = training_spec(stage, mode=mode)
    result = run_stage(spec)
    output = work_of(spec) / "output"
    assert [path.name for path in output.iterdir()] == ["model" if mode == "full" else "adapter"]
    assert result.rows is not None and result.rows.balanced
    assert result.rows.read == (108 if stage == "orpo" else 60)
    assert result.params["demonstrations"] == (48 if stage == "orpo" else 0)
    assert 0 <= (result.metrics["preference_accuracy"] or 0.0) <= 1
    assert len(logs_of(spec)) == STEPS
    assert all(math.isfinite(value) for values in logs_of(spec) for value in values.values())


def test_after_sft_orpo_starts_from_its_adapter_and_leaves_demonstrations_to_it(
    training_spec: Make, sft_artifact: Artifact
) -> None:
    from safetensors.torch import load_file

    spec = training_spec("orpo", sft=sft_artifact, learning_rate=1e-9, max_steps=1)
    result = run_stage(spec)
    assert result.rows is not None and result.rows.read == 60
    name = "adapter/adapter_model.safetensors"
    before = load_file(str(sft_artifact.directory / name))
    after = load_file(str(work_of(spec) / "output" / name))
    assert all((after[key] - value).abs().max() < 1e-6 for key, value in before.items())


@pytest.mark.parametrize("compute", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}])
def test_neither_micro_batch_nor_checkpointing_changes_the_result(
    training_spec: Make, tmp_path: Path, compute: dict[str, Any]
) -> None:
    """An update of 8 holds pairs and demonstrations, so their shares differ by micro-batch."""
    from safetensors.torch import load_file

    weights = []
    for chosen in ({"micro_batch_size": 8}, compute):
        spec = training_spec("orpo", compute=chosen, home=tmp_path / str(len(weights)))
        run_stage(spec)
        path = work_of(spec) / "output" / "adapter" / "adapter_model.safetensors"
        weights.append(load_file(str(path)))
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().max() < 2e-4, name


def stock_rows(prepared: Artifact) -> Dataset:
    """Pairs as rendered text, so that TRL's tokenising gives our ids."""

    tokenizer = load_tokenizer(prepared.directory)
    rows = StoredRows.of(prepared.directory / "preferences" / "train")
    return Dataset.from_list(
        [
            {
                "prompt": tokenizer.decode(row["prompt_ids"]),
                "chosen": tokenizer.decode(row["chosen_ids"][:-1]),
                "rejected": tokenizer.decode(row["rejected_ids"][:-1]),
            }
            for row in rows
        ]
    )


def stock_losses(prepared: Artifact, folder: Path, kind: str, **settings: Any) -> list[float]:
    """Losses of TRL's own trainer on the same rows, all in each batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = import_module(f"trl.experimental.{kind}")
        configuration: Any = getattr(module, f"{kind.upper()}Config")
        trainer_class: Any = getattr(module, f"{kind.upper()}Trainer")
        rows = stock_rows(prepared)
        arguments = configuration(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=len(rows),
            max_length=64,
            **STOCK_TRAINER,
            **settings,
        )
        trainer = trainer_class(
            model=load_base(read_base(prepared.directory), dtype="float32", quantization=None),
            args=arguments,
            train_dataset=rows,
            processing_class=load_tokenizer(prepared.directory),
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def pairs_only(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_rows: Any
) -> Artifact:
    from stage_runs import prepare_spec

    home = tmp_path_factory.mktemp("pairs")
    return run_and_publish(prepare_spec(home, tiny_base, {"preferences": tiny_rows["preferences"]}))


@pytest.mark.parametrize(
    ("stage", "ours", "theirs"),
    [
        ("orpo", {"nll_on": "prompt_and_response", "beta": 0.3}, {"beta": 0.3}),
        (
            "simpo",
            {"beta": 2.0, "simpo_gamma": 0.7, "nll_weight": 0.5},
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.5},
        ),
        (
            "simpo",
            {"beta": 1.5, "simpo_gamma": 0.3, "label_smoothing": 0.1},
            {
                "loss_type": "simpo",
                "beta": 1.5,
                "simpo_gamma": 0.3,
                "cpo_alpha": 0.0,
                "label_smoothing": 0.1,
            },
        ),
    ],
)
def test_each_loss_equals_trls_over_three_updates(
    pairs_only: Artifact, tmp_path: Path, stage: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    from stage_runs import make_spec

    rows = len(stock_rows(pairs_only))
    spec = make_spec(
        pairs_only,
        tmp_path / "ours",
        stage,
        mode="full",
        batch_size=rows,
        max_steps=STEPS,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        compute={"micro_batch_size": rows},
        **ours,
    )
    run_stage(spec)
    found = logged(spec, "loss")
    assert found == pytest.approx(
        stock_losses(pairs_only, tmp_path, "orpo" if stage == "orpo" else "cpo", **theirs), abs=2e-4
    )
