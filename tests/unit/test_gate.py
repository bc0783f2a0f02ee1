"""The promotion gate: its tests against known values, its verdicts, its errors over a year."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignflow.errors import EvaluationError, RecipeError
from alignflow.evaluation.scores import Scores
from alignflow.evaluation.statistics import (
    binomial_tail,
    bootstrap,
    by_prompt,
    mcnemar,
    paired_differences,
    prompts_needed,
    sign_test,
    sign_test_power,
    smallest_detectable_win_rate,
    wins_needed,
)
from alignflow.gate import power_of
from alignflow.gate.decision import gate
from alignflow.gate.judge import JudgementCache, PairJudge, judge_of
from alignflow.gate.power import alpha_of
from alignflow.gate.primary import JudgedWins
from alignflow.recipe import GateSection, JudgeSection

QUICK = GateSection(bootstrap_resamples=400)


def scores(right: list[bool], **fields: dict[str, float]) -> Scores:
    metrics = {"accuracy": {f"p{i}": float(value) for i, value in enumerate(right)}}
    return Scores.model_validate({"model": "m", "metrics": metrics, **fields})


def answers(wins: int, losses: int, ties: int) -> tuple[Scores, Scores]:
    ours = [True] * wins + [False] * losses + [True] * ties
    theirs = [False] * wins + [True] * losses + [True] * ties
    return scores(ours), scores(theirs)


def verdict(candidate: Scores, champion: Scores, section: GateSection = QUICK, **more):
    return gate(candidate, champion, section, evaluation="e", **more)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(0, 10, 1.0), (10, 10, 2**-10), (8, 10, 56 / 1024), (11, 10, 0.0), (5, 9, 0.5)],
)
def test_the_binomial_tail_is_exact(successes: int, trials: int, expected: float) -> None:
    assert binomial_tail(successes, trials) == pytest.approx(expected, rel=1e-12)


def test_the_tail_agrees_with_whole_numbers() -> None:
    for trials, successes in [(617, 340), (1001, 530)]:
        exact = sum(math.comb(trials, k) for k in range(successes, trials + 1)) / 2**trials
        assert binomial_tail(successes, trials) == pytest.approx(exact, rel=1e-10)


def test_mcnemar_counts_only_prompts_on_which_the_models_differ() -> None:
    found = mcnemar([True, True, False, True], [False, True, True, False])
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.p_value == pytest.approx(0.5)
    assert sign_test(0, 0, 50).p_value == 1.0


@pytest.mark.parametrize(
    ("win_rate", "alpha", "formula"),
    [(0.55, 0.05, 617), (0.60, 0.05, 153), (0.55, 0.01, 1001), (0.60, 0.01, 249)],
)
def test_sample_sizes_agree_with_the_normal_formula(
    win_rate: float, alpha: float, formula: int
) -> None:
    needed = prompts_needed(2 * win_rate - 1, alpha, 0.8, 1.0)
    assert formula <= needed <= formula * 1.06  # exact tests need a little more
    assert sign_test_power(needed, win_rate, alpha) >= 0.8
    assert smallest_detectable_win_rate(needed, alpha, 0.8) == pytest.approx(win_rate, abs=3e-3)


def test_too_few_prompts_can_find_nothing() -> None:
    assert wins_needed(4, 0.05) is None and wins_needed(5, 0.05) == 5
    assert "no effect at all" in power_of(10, QUICK).text


def test_the_plan_says_how_many_prompts_are_missing() -> None:
    few = power_of(120, QUICK)
    assert few.missing_prompts > 0 and f"add {few.missing_prompts} for 5.0%" in few.text
    assert power_of(120 + few.missing_prompts, QUICK).missing_prompts == 0


def test_the_unit_is_the_prompt() -> None:
    """Five responses to each prompt do not make an equal model look better."""
    generator = np.random.default_rng(5)
    wrong = {"clustered": 0, "naive": 0}
    for repeat in range(200):
        effects = generator.normal(0, 1, 60)
        values = np.repeat(effects, 5) + generator.normal(0, 0.3, 300)
        prompts = [f"p{i // 5}" for i in range(300)]
        clustered = list(by_prompt(prompts, list(values)).values())
        for name, sample in (("clustered", clustered), ("naive", list(values))):
            interval = bootstrap(sample, confidence=0.95, resamples=500, seed=repeat)
            wrong[name] += interval.low > 0
    assert wrong["clustered"] / 200 < 0.09 < 0.15 < wrong["naive"] / 200


def test_the_bootstrap_covers_a_skewed_mean() -> None:
    generator = np.random.default_rng(3)
    missed = sum(
        bootstrap(list(generator.exponential(1, 80)), confidence=0.95, resamples=800, seed=i).low
        > 1.0
        for i in range(200)
    )
    assert missed / 200 < 0.09


def test_models_measured_on_other_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="scored for one model only"):
        paired_differences({"a": 1.0}, {"b": 1.0})


def test_a_better_candidate_is_promoted() -> None:
    found = verdict(*answers(50, 20, 200))
    assert found.verdict == "promote" and found.test == "exact McNemar"
    assert found.p_value is not None and found.p_value < 0.001
    assert "50 wins and 20 losses" in found.reasons[0]
    told = f"(exact McNemar, one-sided, p = {found.p_value:.4g}, alpha 0.05)"
    assert told in found.reasons[0]


def test_a_worse_candidate_is_rejected_by_the_test_of_that_side() -> None:
    found, contrary = verdict(*answers(20, 50, 200)), verdict(*answers(50, 20, 200))
    assert found.verdict == "reject" and "worse" in found.reasons[0]
    assert f"(exact McNemar, one-sided for worse, p = {contrary.p_value:.4g}," in found.reasons[0]


def test_a_tie_is_never_promoted() -> None:
    assert verdict(*answers(0, 0, 400)).verdict == "reject"
    assert verdict(*answers(30, 30, 400)).verdict != "promote"


def test_a_small_sample_is_inconclusive_even_where_every_answer_is_better() -> None:
    found = verdict(*answers(60, 0, 0))
    assert found.verdict == "inconclusive" and "add 40" in found.reasons[0]


def test_a_gain_neither_shown_nor_ruled_out_is_inconclusive() -> None:
    found = verdict(*answers(45, 35, 120))
    assert found.verdict == "inconclusive" and "neither shown nor ruled out" in found.reasons[0]


def test_without_an_independent_judge_a_person_is_asked() -> None:
    nothing = Scores(model="m")
    found = verdict(nothing, nothing)
    assert found.verdict == "inconclusive" and "alignflow promote" in found.reasons[0]
    trained = JudgedWins(
        judge="ppo's", wins={f"p{i}": 1.0 for i in range(200)}, trained_against=True
    )
    assert verdict(nothing, nothing, judged=trained).verdict == "inconclusive"
    reward = Scores(model="m", metrics={"reward": {f"p{i}": 1.0 for i in range(200)}})
    assert (
        verdict(reward, nothing.model_copy(update={"metrics": reward.metrics})).verdict
        == "inconclusive"
    )


def test_a_judge_decides_where_no_metric_does() -> None:
    wins = {f"p{i}": 1.0 if i % 3 else 0.0 for i in range(150)} | {f"t{i}": 0.5 for i in range(50)}
    nothing = Scores(model="m")
    found = verdict(nothing, nothing, judged=JudgedWins(judge="j", wins=wins, human_agreement=0.8))
    assert found.verdict == "promote" and found.test == "sign test"
    assert found.prompts == 200 and found.human_agreement == 0.8


def test_a_continuous_metric_is_bootstrapped() -> None:
    source = random.Random(1)
    theirs = {f"p{i}": source.random() for i in range(200)}
    ours = {prompt: value + source.gauss(0.1, 0.2) for prompt, value in theirs.items()}
    found = verdict(
        Scores(model="a", metrics={"overlap": ours}), Scores(model="b", metrics={"overlap": theirs})
    )
    assert found.verdict == "promote" and found.test == "paired bootstrap by prompt"


def test_forgetting_is_measured_against_the_original_base() -> None:
    ours, theirs = answers(50, 20, 200)
    texts = [f"t{i}" for i in range(100)]
    base = Scores(model="base", general_loss=dict.fromkeys(texts, 3.0))
    for loss, expected in ((3.02, "promote"), (3.2, "reject")):
        forgot = ours.model_copy(update={"general_loss": dict.fromkeys(texts, loss)})
        assert verdict(forgot, theirs, base=base).verdict == expected


def test_a_guardrail_that_is_not_proven_holds_a_promotion_back() -> None:
    ours, theirs = answers(50, 20, 200)
    prompts = [f"p{i}" for i in range(270)]
    safe = theirs.model_copy(update={"unsafe": dict.fromkeys(prompts, 0.0)})
    few = dict.fromkeys(prompts, 0.0) | {"p0": 1.0, "p1": 1.0}
    risky = ours.model_copy(update={"unsafe": few})
    found = verdict(risky, safe)
    assert found.verdict == "inconclusive" and "unsafe" in found.reasons[0]


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, "promote"), (1.6, "reject"), (0.5, "reject")]
)
def test_answers_that_grow_or_shrink_are_rejected(factor: float, expected: str) -> None:
    ours, theirs = answers(50, 20, 200)
    source = random.Random(2)
    lengths = {f"p{i}": 20 + 10 * source.random() for i in range(270)}
    longer = {prompt: value * factor for prompt, value in lengths.items()}
    found = verdict(
        ours.model_copy(update={"length": longer}), theirs.model_copy(update={"length": lengths})
    )
    assert found.verdict == expected


def test_a_kl_limit_that_was_asked_for_but_not_measured_holds_back() -> None:
    limited = QUICK.model_copy(update={"max_kl": 5.0})
    found = verdict(*answers(50, 20, 200), limited)
    assert found.verdict == "inconclusive" and "KL" in found.reasons[0]


def promotions_over_a_year(profile: str, lines: int, seed: int) -> np.ndarray:
    """False promotions of each of `lines` lines of 52 retrains whose candidates equal champions."""
    section = GateSection.model_validate({"profile": profile})
    generator = np.random.default_rng(seed)
    differing = generator.binomial(600, 0.3, (lines, 52))
    wins = generator.binomial(differing, 0.5)
    promoted = np.zeros((lines, 52), dtype=bool)
    for look in range(52):
        alpha = alpha_of(section, look + 1)
        for line in range(lines):
            needed = wins_needed(int(differing[line, look]), alpha)
            promoted[line, look] = needed is not None and wins[line, look] >= needed
    return promoted.sum(axis=1)


def test_balanced_promotes_an_equal_model_about_twice_a_year() -> None:
    false = promotions_over_a_year("balanced", 300, seed=11)
    assert 1.5 < false.mean() < 2.6 + 0.3  # at most 52 * 0.05, less for the exact test's steps
    assert (false > 0).mean() > 0.7


def test_strict_promotes_an_equal_model_in_at_most_one_year_of_ten() -> None:
    false = promotions_over_a_year("strict", 600, seed=12)
    assert (false > 0).mean() <= 0.10 + 0.02
    assert false.mean() <= 0.12


@pytest.mark.parametrize(
    ("win_rate", "untied", "at_least"), [(0.55, 643, 0.77), (0.60, 158, 0.77), (0.60, 643, 0.99)]
)
def test_power_to_find_a_better_model(win_rate: float, untied: int, at_least: float) -> None:
    needed = wins_needed(untied, 0.05)
    assert needed is not None
    found = np.random.default_rng(13).binomial(untied, win_rate, 4000) >= needed
    assert found.mean() >= at_least
    assert found.mean() == pytest.approx(sign_test_power(untied, win_rate, 0.05), abs=0.025)


def test_a_judge_is_exactly_one_of_two() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        JudgeSection(function="a:b", endpoint="http://127.0.0.1/v1")
    with pytest.raises(ValueError, match="exactly one"):
        JudgeSection()


def longer(prompt: str, first: str, second: str) -> str:
    """A judge that prefers length."""
    if len(first) == len(second):
        return "tie"
    return "first" if len(first) > len(second) else "second"


def always_first(prompt: str, first: str, second: str) -> str:
    return "first"


def test_a_judge_sees_both_orders_and_answers_are_kept(tmp_path: Path) -> None:
    seen: list[str] = []

    def judge(prompt: str, first: str, second: str) -> str:
        seen.append(prompt)
        return longer(prompt, first, second)

    rows = {"p1": ("longer answer", "short"), "p2": ("a", "bcd"), "p3": ("ab", "cd")}
    for _ in range(2):
        cache = JudgementCache(tmp_path / "judgements.jsonl")
        assert PairJudge("length", judge, cache).compare(rows) == {"p1": 1.0, "p2": 0.0, "p3": 0.5}
    assert len(seen) == 6


def test_a_judge_that_prefers_a_position_finds_ties(tmp_path: Path) -> None:
    judge = PairJudge("bias", always_first, JudgementCache(tmp_path / "j.jsonl"))
    assert judge.compare({"p": ("a", "b")}) == {"p": 0.5}


def test_agreement_with_humans_is_reported(tmp_path: Path) -> None:
    pairs = [("p", "longer", "short"), ("p", "s", "longer"), ("p", "aa", "bb")]
    cache = JudgementCache(tmp_path / "j.jsonl")
    assert PairJudge("length", longer, cache).agreement(pairs) == pytest.approx(0.5)


def test_a_torn_line_of_the_cache_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    PairJudge("length", longer, JudgementCache(path)).compare({"p": ("aa", "b")})
    path.write_text(path.read_text() + '{"key": "abc", "ans')
    again = PairJudge("length", longer, JudgementCache(path))
    assert again.compare({"p": ("aa", "b"), "q": ("a", "bb")}) == {"p": 1.0, "q": 0.0}
    assert len(JudgementCache(path)) == 4


def test_a_judge_function_is_imported_by_path() -> None:
    section = JudgeSection(function="tests.unit.test_gate:longer")
    assert judge_of(section)("p", "aa", "b") == "first"
    with pytest.raises(RecipeError, match="no_such"):
        judge_of(JudgeSection(function="tests.unit.test_gate:no_such"))


@pytest.mark.parametrize(
    ("reply", "expected"), [("A", "first"), ("**B**.", "second"), ("Tie", "tie")]
)
def test_an_endpoint_is_asked(reply: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_JUDGE_KEY", "canary-secret")
    requests: list[dict[str, Any]] = []
    with endpoint(reply, requests) as address:
        answer = judge_of(JudgeSection(endpoint=address))("Why?", "because", "so")
    assert answer == expected
    assert requests[0]["authorization"] == "Bearer canary-secret"
    assert "because" in requests[0]["body"]["messages"][-1]["content"]


def test_pairs_are_judged_at_the_same_time_and_every_answer_is_kept(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=20)

    def judge(prompt: str, first: str, second: str) -> str:
        together.wait()
        return longer(prompt, first, second)

    path = tmp_path / "j.jsonl"
    rows = {f"p{number}": ("aa" * number, "a") for number in range(1, 9)}
    four = PairJudge("length", judge, JudgementCache(path), at_once=4)
    assert four.compare(rows) == dict.fromkeys(rows, 1.0)
    assert len(JudgementCache(path)) == 16


def test_a_judge_that_fails_is_not_asked_about_the_rest(tmp_path: Path) -> None:
    asked: list[str] = []

    def judge(prompt: str, first: str, second: str) -> str:
        asked.append(prompt)
        raise EvaluationError("down")

    rows = {f"p{number}": ("aa", "a") for number in range(100)}
    with pytest.raises(EvaluationError, match="down"):
        PairJudge("length", judge, JudgementCache(tmp_path / "j.jsonl"), at_once=2).compare(rows)
    assert len(asked) <= 2


def test_an_endpoint_that_is_down_is_not_a_lost_game() -> None:
    with pytest.raises(EvaluationError, match="did not answer"):
        judge_of(JudgeSection(endpoint="http://127.0.0.1:9/v1", timeout_seconds=1))("p", "a", "b")


@contextmanager
def endpoint(reply: str, requests: list[dict[str, Any]]) -> Iterator[str]:
    """An OpenAI-compatible server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"body": body, "authorization": self.headers["Authorization"]})
            content = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
