"""Whether one arm is better than another, against scipy, by hand, and on tables that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from alignflow.deciding.statistics import (
    Comparison,
    compared,
    detectable,
    holm,
    interval,
    questions_needed,
    t_tail,
)
from alignflow.deciding.verdict import Rules, Verdict, contender_of, sentence, verdict_of

RULES = Rules(alpha=0.05, power=0.8, smallest_effect=0.05)
COSTS = {"base": 1.0, "few-shot": 2.0, "rag": 3.0, "sft": 4.0, "oracle": 0.0}


def arm(
    rng: np.random.Generator, right: np.ndarray, seeds: int = 1, luck: float = 0.0
) -> np.ndarray:
    """Right and wrong answers, [seeds, questions], at each question's own chance."""
    shift = rng.normal(0.0, luck, size=(seeds, 1)) if seeds > 1 else 0.0
    return (rng.random((seeds, right.size)) < np.clip(right + shift, 0, 1)).astype(float)


def table(seed: int, gains: dict[str, float], questions: int = 200) -> dict[str, np.ndarray]:
    """Values of arms that differ from base by `gains`; sft has three seeds."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(2, 2, size=questions)
    return {
        name: arm(rng, chance + gain, 3 if name == "sft" else 1, 0.04)
        for name, gain in gains.items()
    }


def decided(values: dict[str, np.ndarray], contender: str) -> Verdict:
    questions = values["base"].shape[1]
    return verdict_of(values, ["all"] * questions, contender, COSTS, RULES)


def test_the_tail_of_t_is_scipys() -> None:
    for degrees in (1.0, 2.0, 2.7, 9.5, 60.0, 1e4):
        for value in np.linspace(-7, 7, 29):
            assert t_tail(value, degrees) == pytest.approx(stats.t.sf(value, degrees), abs=1e-9)


def test_right_and_wrong_answers_are_compared_by_the_exact_binomial_test() -> None:
    first, second = np.zeros((1, 40)), np.zeros((1, 40))
    first[0, :12], second[0, 12:16] = 1.0, 1.0
    expected = stats.binomtest(12, 16, alternative="greater").pvalue
    assert compared(first, second).p_value == pytest.approx(expected)
    assert compared(first, first).p_value == 1.0


def test_graded_answers_are_compared_as_scipys_permutation_test_does() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((1, 12)) + 0.15, rng.random((1, 12))
    exact = stats.permutation_test(
        (first[0] - second[0],),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert compared(first, second).p_value == pytest.approx(exact.pvalue, abs=0.015)  # 3 errors


def test_without_luck_of_seeds_the_test_is_students_paired_one() -> None:
    rng = np.random.default_rng(5)
    answers = rng.random(80)
    seeds = np.stack([answers, answers, answers])
    other = rng.random((1, 80)) - 0.05
    expected = stats.ttest_rel(answers, other[0], alternative="greater").pvalue
    assert compared(seeds, other).p_value == pytest.approx(expected)


def test_the_critical_value_lies_between_those_of_questions_and_of_seeds() -> None:
    rng = np.random.default_rng(7)
    seeds = np.clip(rng.random((3, 60)) + np.array([[0.0], [0.1], [0.2]]), 0, None)
    base = np.zeros((1, 60)) + 0.3
    own = compared(seeds, base)
    questions, luck = own.spread**2 / 60, own.seed_variance
    wanted = own.difference / np.sqrt(questions + luck)
    critical = (questions * stats.t.isf(own.p_value, 59) + luck * stats.t.isf(own.p_value, 2)) / (
        questions + luck
    )
    assert critical == pytest.approx(wanted, rel=1e-4)
    assert compared(base, seeds).p_value == pytest.approx(1.0 - own.p_value)


def test_one_lucky_seed_of_three_shows_nothing() -> None:
    base = (np.arange(200) % 2).astype(float)[None]
    lucky = np.stack([base[0], base[0], np.ones(200)])
    alone = compared(lucky[2:], base)
    assert alone.p_value < 1e-6 and compared(lucky, base).p_value > 0.15


def test_holms_adjustment_worked_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5})


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    answers = arm(rng, np.full(300, 0.6))
    low, high = interval(answers)
    share = float(answers.mean())
    spread = 1.96 * np.sqrt(share * (1 - share) / 300)
    assert high - low == pytest.approx(2 * spread, rel=0.1)
    lucky = np.concatenate([answers, answers * 0.8, np.minimum(answers + 0.2, 1.0)])
    wide = interval(lucky)
    assert wide[1] - wide[0] > 1.5 * (high - low)


def test_the_questions_that_would_tell_are_found_and_what_they_find_is_the_effect() -> None:
    own = Comparison(difference=0.1, p_value=0.1, spread=0.6, seed_variance=0.0)
    needed = questions_needed(own, 0.1, 0.05, 0.8)
    assert needed == 223  # (0.6 * (1.6449 + 0.8416) / 0.1) ** 2
    assert detectable(own, needed, 0.05, 0.8) == pytest.approx(0.1, rel=0.01)
    assert questions_needed(own._replace(seed_variance=0.01), 0.1, 0.05, 0.8) is None


def test_the_better_arm_is_recommended_and_oracle_never() -> None:
    values = table(0, {"base": 0.0, "rag": 0.3, "sft": 0.0, "oracle": 0.45})
    verdict = decided(values, "rag")
    assert verdict.recommended == "rag" and verdict.ties == []
    assert all("oracle" not in (test.first, test.second) for test in verdict.tests)
    choice = {"base": 0.4, "rag": 0.7, "oracle": 0.99, "few-shot": 0.7}
    assert contender_of(choice, COSTS) == "few-shot"  # as good, and cheaper


def test_the_cheapest_of_those_not_told_apart_is_recommended_and_the_tie_is_named() -> None:
    verdict = decided(table(1, {"base": 0.0, "few-shot": 0.3, "rag": 0.31}), "rag")
    assert verdict.recommended == "few-shot" and verdict.ties == ["rag"]


def test_equal_arms_are_inconclusive_with_the_number_of_questions_that_would_tell() -> None:
    values = table(2, {"base": 0.0, "few-shot": 0.0, "rag": 0.0})
    verdict = decided(values, "rag")
    assert verdict.recommended is None
    assert verdict.questions_needed is not None and verdict.questions_needed > 200
    said = sentence(verdict, {name: float(v.mean()) for name, v in values.items()}, COSTS)
    assert said.startswith("Inconclusive: rag leads base by") and "questions" in said


def test_base_is_recommended_only_where_every_other_arm_is_shown_worse() -> None:
    assert decided(table(3, {"base": 0.0, "rag": -0.3}), "base").recommended == "base"
    assert decided(table(3, {"base": 0.0, "rag": 0.0}), "base").recommended is None


def test_groups_have_a_verdict_of_their_own() -> None:
    facts = table(4, {"base": -0.2, "rag": 0.3, "sft": -0.2}, 120)
    format_ = table(5, {"base": -0.2, "rag": -0.2, "sft": 0.35}, 120)
    values = {name: np.concatenate([facts[name], format_[name]], axis=1) for name in facts}
    groups = ["facts"] * 120 + ["format"] * 120
    verdict = verdict_of(values, groups, "rag", COSTS, RULES)
    assert verdict.groups["facts"].recommended == "rag"
    assert verdict.groups["format"].recommended == "sft"
    said = sentence(verdict, {n: float(v.mean()) for n, v in values.items()}, COSTS)
    assert said.endswith("But for the questions of group format: sft.")


def test_what_was_chosen_on_other_questions_is_not_flattered_by_the_choice() -> None:
    chosen, flattered = [], []
    for number in range(100):
        rng = np.random.default_rng(number)
        names = ["base", *(f"arm {n}" for n in range(9))]  # all equal
        choice, verdict = (
            {name: float(rng.binomial(80, 0.5)) / 80 for name in names} for _ in range(2)
        )
        costs = dict.fromkeys(names, 1.0)
        chosen.append(verdict[contender_of(choice, costs)])
        flattered.append(verdict[contender_of(verdict, costs)])
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.02) and np.mean(flattered) > 0.56


def false_claims(tables: int, arms: int, luck: float, questions: int) -> float:
    """Share of tables of equal arms on which any "A beats B" was claimed."""
    wrong = 0
    for number in range(tables):
        rng = np.random.default_rng(number)
        chance = rng.beta(2, 2, size=questions)
        names = ["base", "few-shot", "rag", "sft", "pretrain"][:arms]
        values = {n: arm(rng, chance, 3 if n in ("sft", "pretrain") else 1, luck) for n in names}
        choice = {name: float(rng.binomial(100, 0.5)) for name in names}
        costs = dict.fromkeys(names, 1.0)
        contender = contender_of(choice, costs)
        verdict = verdict_of(values, ["all"] * questions, contender, costs, RULES)
        wrong += any(test.shown for test in verdict.tests)
    return wrong / tables


def test_equal_arms_are_called_different_no_more_often_than_the_level_says() -> None:
    # of 200 tables at a true 5 % more than 17 would be found wrong once in forty
    assert false_claims(200, 5, 0.05, 100) <= 18 / 200


@pytest.mark.proof
@pytest.mark.parametrize("luck", [0.0, 0.05, 0.15])
def test_the_level_holds_on_2000_tables(luck: float) -> None:
    # three standard errors above 5 %
    assert false_claims(2000, 5, luck, 150) <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
