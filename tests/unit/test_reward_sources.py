"""Rewards that are no model: the builtin judge, the user's functions, and how terms combine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignflow.builtin import rows
from alignflow.errors import DataError, EvaluationError, RecipeError
from alignflow.recipe import RewardTerm
from alignflow.recipe.resolve import resolve_function
from alignflow.training.rl.reward_sources import RewardScale, combined, load_rewards


def terms(*sources: str) -> list[RewardTerm]:
    return [RewardTerm(source=source) for source in sources]


def test_the_execution_reward_is_one_for_a_right_answer_only() -> None:
    target = '{"answer": "SELECT SUM(age) FROM trucks", "ordered": false}'
    answers = ["SELECT SUM(age) FROM trucks;", "SELECT SUM(axles) FROM trucks", "Sure!"]
    reward = load_rewards(terms("execution"))["execution"]
    assert reward(["?"] * 3, answers, [target] * 3).tolist() == [1.0, 0.0, 0.0]


def test_the_execution_reward_asks_for_targets() -> None:
    with pytest.raises(DataError, match=r"prompt and target in data\.prompts"):
        load_rewards(terms("execution"))["execution"](["?"], ["SELECT 1"], [None])


def test_every_builtin_prompt_has_a_target_that_refuses_or_answers() -> None:
    prompts = rows("freight-prompts")
    refused = sum("refused" in row["target"] for row in prompts)
    assert len({str(row["prompt"]) for row in prompts}) == len(prompts)
    assert refused / len(prompts) == pytest.approx(1 / 3)


def test_functions_come_from_modules_and_from_files_that_may_have_moved(tmp_path: Path) -> None:
    source = "rewards.py:length"
    moved = tmp_path / "rewards.py"
    moved.write_text("def length(prompts, responses, targets):\n    return map(len, responses)\n")
    found = load_rewards(
        terms("reward_model", source, "alignflow.training.rl.reward_sources:execution_reward"),
        {source: str(moved)},
    )
    assert list(found) == [source, "alignflow.training.rl.reward_sources:execution_reward"]
    assert found[source](["?", "?"], ["a", "abc"], [None, None]).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("answer", ["[1.0]", "[1.0, float('nan')]"])
def test_a_function_must_give_a_finite_number_for_each_response(
    tmp_path: Path, answer: str
) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(f"def f(prompts, responses, targets):\n    return {answer}\n")
    reward = load_rewards(terms(f"{path}:f"))[f"{path}:f"]
    with pytest.raises(EvaluationError, match="one finite number for each"):
        reward(["?", "?"], ["a", "b"], [None, None])


@pytest.mark.parametrize("source", ["nowhere.to_be:found", "nowhere.py:found", "json:no_such"])
def test_what_cannot_be_imported_is_named(source: str) -> None:
    with pytest.raises(RecipeError, match="cannot be imported"):
        load_rewards(terms(source))


def test_a_function_s_file_is_found_without_importing_it(tmp_path: Path) -> None:
    path = tmp_path / "explodes.py"
    path.write_text("raise RuntimeError\n")
    assert resolve_function(f"{path}:f") == path
    assert resolve_function("json.decoder:JSONDecoder").name == "decoder.py"
    for source in ("nowhere.py:f", "nowhere.to_be:f"):
        with pytest.raises(RecipeError, match="nowhere"):
            resolve_function(source)


def test_terms_are_standardized_by_the_first_batch_weighted_and_clamped() -> None:
    """Source a: mean 1, deviation 2, so 3 is +1 and 5 is +2. Source b: mean 0, deviation 1, weight -2.

    Row 0: 1 * (+1) - 2 * (-0.5) = 2. Row 1: 1 * (+2) - 2 * 4 = -6, clamped to -4.
    """
    scales = {"m:a": RewardScale.of(torch.tensor([-1.0, 3.0])), "m:b": RewardScale(0.0, 1.0)}
    total = combined(
        {"m:a": torch.tensor([3.0, 5.0]), "m:b": torch.tensor([-0.5, 4.0])},
        scales,
        [RewardTerm(source="m:a"), RewardTerm(source="m:b", weight=-2.0)],
        clamp=4.0,
    )
    assert total.tolist() == [2.0, -4.0]


def test_a_first_batch_of_equal_scores_gives_no_scale() -> None:
    """Else the first other score would be a million, and drown every other source."""
    scale = RewardScale.of(torch.zeros(4))
    assert scale.apply(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
