"""What a recipe's tuning refuses by itself, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from check_cases import changed
from pydantic import ValidationError

from alignflow.recipe import Recipe, TuningSection


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        ({"initialization": "pissa"}, "PiSSA takes the principal part out of the frozen base"),
        ({"initialization": "pissa_niter_4"}, "which is also the reference"),
        ({"initialization": "olora"}, "OLoRA takes an orthonormal part out"),
        ({"initialization": "corda"}, "CorDA"),
        ({"initialization": "lora_ga"}, "LoRA-GA"),
        ({"initialization": "loftq"}, "mode lora quantizes nothing; use mode qlora"),
        ({"initialization": "loftq", "mode": "full"}, "mode full quantizes nothing"),
        ({"mode": "qlora", "use_dora": True}, "use_dora with mode qlora is not supported"),
        ({"initialization": "orthogonal", "rank": 7}, r"needs even ranks, here are \[7\]"),
        ({"initialization": "orthogonal", "rank_pattern": {"q_proj": 5}}, r"\[16, 5\]"),
        ({"mode": "full", "lora_plus_ratio": 16}, "mode full has none"),
        ({"lora_plus_ratio": 0.5}, "greater than or equal to 1"),
        ({"weights_dtype": "bfloat16"}, "weights_dtype is for mode full"),
        (
            {"mode": "full", "weights_dtype": "bfloat16", "dtype": "float32"},
            "computes in bfloat16, but dtype is float32",
        ),
        ({"rank_pattern": {"q_proj(": 8}}, "is no regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "give a number from 1"),
        ({"layers_to_transform": []}, "give different numbers from 0"),
        ({"layers_to_transform": [1, -1]}, "give different numbers from 0"),
        ({"layers_to_transform": [1, 1]}, "give different numbers from 0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(tuning: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TuningSection.model_validate(tuning)


PPO: dict[str, Any] = {
    "method": "ppo",
    "dpo": None,
    "sft": None,
    "reward": {"max_length": 192},
    "ppo": {"max_length": 192, "max_new_tokens": 40},
}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**PPO, "tuning": {"initialization": "eva"}}, "ppo without sft has prompts only"),
        (
            {**PPO, "tuning": {"mode": "qlora", "initialization": "loftq"}},
            "moves the start away from the quantized base",
        ),
        (
            {
                "tuning": {"mode": "qlora", "initialization": "loftq"},
                "merge": {"qlora_base": "original"},
            },
            "would add twice; use dequantized",
        ),
    ],
)
def test_a_start_that_a_stage_cannot_have_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Recipe.model_validate(changed(**fields))


def test_with_sft_every_start_goes_with_ppo() -> None:
    with_sft = {name: value for name, value in PPO.items() if name != "sft"}
    for tuning in ({"initialization": "eva"}, {"mode": "qlora", "initialization": "loftq"}):
        assert Recipe.model_validate(changed(**with_sft, tuning=tuning)).tuning.mode


def test_alpha_follows_the_ranks_of_a_pattern_unless_it_is_given() -> None:
    ranks = {"down_proj": 64, "q_proj": 8}
    tuning = TuningSection(rank_pattern=ranks)
    assert tuning.lora_alphas == {"down_proj": 128.0, "q_proj": 16.0}
    own = TuningSection(rank_pattern=ranks, alpha_pattern={"q_proj": 4})
    assert own.lora_alphas == {"q_proj": 4, "down_proj": 128.0}
    assert TuningSection(rank_pattern=ranks, alpha=32).lora_alphas == {}


def test_what_is_logged_names_what_was_asked_for() -> None:
    logged = TuningSection(
        rank_pattern={"q_proj": 8}, layers_to_transform=[0, 2], lora_plus_ratio=16
    ).logged()
    assert logged["lora_rank_pattern"] == '{"q_proj": 8}'
    assert logged["lora_alpha_pattern"] == '{"q_proj": 16.0}'
    assert (logged["lora_layers"], logged["lora_plus_ratio"]) == ("0,2", 16)
    assert "lora_plus_ratio" not in TuningSection().logged()
