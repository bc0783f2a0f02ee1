"""The promotion gate: is the candidate better than the champion, and does it harm nothing?

A verdict needs all of: a judge that is independent of training, enough prompts, a one-sided paired
test at the profile's alpha, and every guardrail by non-inferiority. Reasons name what decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from alignflow.evaluation.scores import Scores
from alignflow.evaluation.statistics import (
    Interval,
    SignTest,
    bootstrap,
    mcnemar,
    paired_differences,
    prompts_needed,
    sign_test,
    smallest_detectable_effect,
)
from alignflow.recipe import GateSection
from alignflow.stages.spec import Record

Decision = Literal["promote", "reject", "inconclusive"]
USUAL_DISCORDANCE = 0.2
GUARDRAIL_CONFIDENCE = 0.95
REFUSED_JUDGES = frozenset({"reward", "reward_model", "score"})


class Judgement(Record):
    """Wins of the candidate by prompt, from a judge that saw both orders."""

    judge: str
    wins: dict[str, float]
    """1 won, 0 lost, 0.5 tie or disagreement between the two orders."""
    trained_against: bool = False
    """Whether the candidate was optimised against this judge."""
    human_agreement: float | None = None
    """Share of the hold-out's human preferences that the judge shares."""


class Guardrail(Record):
    """One thing that must not get worse."""

    name: str
    state: Literal["passed", "failed", "unproven", "not_measured"]
    value: float | None = None
    bound: float | None = None
    """Upper (for a lower limit: lower) 95 % bound of `value`."""
    limit: float
    text: str


class Verdict(Record):
    """What the gate found; kept in the ledger and in the run's report."""

    verdict: Decision
    reasons: list[str]
    candidate: str
    champion: str
    evaluation: str
    """Digest of the pinned evaluation set."""
    profile: str
    look: int
    """Which test on this hold-out this was, from 1."""
    alpha: float
    judge: str | None = None
    test: str | None = None
    p_value: float | None = None
    wins: int | None = None
    losses: int | None = None
    prompts: int = 0
    effect: float | None = None
    interval: tuple[float, float] | None = None
    smallest_detectable: float | None = None
    human_agreement: float | None = None
    guardrails: list[Guardrail] = Field(default_factory=list)


class Plan(Record):
    """What the hold-out can show, said before anything is trained."""

    prompts: int
    alpha: float
    power: float
    smallest_detectable: float | None
    smallest_effect: float
    missing_prompts: int
    """Prompts to add for `smallest_effect` to be found with `power`; 0 when there are enough."""
    text: str


class Primary(Record):
    """The test that decides, before guardrails."""

    test: str
    judge: str
    p_value: float | None
    """None where the interval decides."""
    better: bool
    worse: bool
    interval: Interval
    wins: int | None = None
    losses: int | None = None
    human_agreement: float | None = None


def alpha_of(section: GateSection, look: int) -> float:
    """Level of the `look`-th test on one hold-out (from 1).

    Profile strict spends 6 / (pi^2 k^2) of total_alpha on test k, whose sum over all k is 1.
    """
    if section.profile == "balanced":
        return section.alpha
    return section.total_alpha * 6.0 / (math.pi**2 * look**2)


def plan(
    prompts: int, section: GateSection, look: int = 1, discordance: float | None = None
) -> Plan:
    """What `prompts` prompts can show at this look.

    Args:
        prompts: Prompts of the evaluation set.
        section: The recipe's gate.
        look: Which test on this hold-out it is.
        discordance: Share of prompts on which the models differ; None assumes 20 %.
    """
    share = USUAL_DISCORDANCE if discordance is None else discordance
    share = min(1.0, max(share, section.smallest_effect))
    alpha = alpha_of(section, look)
    detectable = smallest_detectable_effect(prompts, alpha, section.power, share)
    needed = max(
        section.min_prompts, prompts_needed(section.smallest_effect, alpha, section.power, share)
    )
    missing = max(0, needed - prompts)
    found = "no effect at all" if detectable is None else f"a gain of {detectable:.1%} of prompts"
    advice = f"; add {missing} for {section.smallest_effect:.1%}" if missing else ""
    return Plan(
        prompts=prompts,
        alpha=alpha,
        power=section.power,
        smallest_detectable=detectable,
        smallest_effect=section.smallest_effect,
        missing_prompts=missing,
        text=(
            f"{prompts} held-out prompts find {found} with {section.power:.0%} power at alpha "
            f"{alpha:.4g} (models differing on {share:.0%} of prompts){advice}"
        ),
    )


def gate(
    candidate: Scores,
    champion: Scores,
    section: GateSection,
    *,
    evaluation: str,
    look: int = 1,
    base: Scores | None = None,
    judgement: Judgement | None = None,
) -> Verdict:
    """Whether `candidate` replaces `champion`.

    Args:
        candidate: Scored on the pinned set.
        champion: Scored on the same set.
        section: The recipe's gate.
        evaluation: Digest of the pinned set.
        look: Which test on this hold-out this is, from 1 (alpha spending of profile strict).
        base: The original base model, for the loss on general text.
        judgement: Pairwise judgements, used where no metric decides.

    Raises:
        ValueError: The two were not measured on the same prompts.
    """
    primary = _primary(candidate, champion, section, alpha_of(section, look), judgement)
    guardrails = _guardrails(candidate, champion, base, section)
    verdict, reasons = _decide(primary, guardrails, section, alpha_of(section, look))
    found: dict[str, Any] = {}
    if primary is not None:
        interval = primary.interval
        found = {
            **primary.model_dump(include={"test", "judge", "p_value", "wins", "losses", "human_agreement"}),
            "prompts": interval.n,
            "effect": interval.mean,
            "interval": (interval.low, interval.high) if interval.n else None,
            "smallest_detectable": plan(
                interval.n, section, look, _discordance(primary)
            ).smallest_detectable,
        }  # fmt: skip
    return Verdict(
        verdict=verdict,
        reasons=reasons,
        candidate=candidate.model,
        champion=champion.model,
        evaluation=evaluation,
        profile=section.profile,
        look=look,
        alpha=alpha_of(section, look),
        guardrails=guardrails,
        **found,
    )


def _discordance(primary: Primary) -> float | None:
    if primary.wins is None or primary.losses is None or not primary.interval.n:
        return None
    return (primary.wins + primary.losses) / primary.interval.n


def _primary(
    candidate: Scores,
    champion: Scores,
    section: GateSection,
    alpha: float,
    judgement: Judgement | None,
) -> Primary | None:
    """The deciding comparison, or None without an independent judge."""
    shared = [name for name in candidate.metrics if name in champion.metrics and name not in REFUSED_JUDGES]  # fmt: skip
    metric = section.metric or (shared[0] if shared else None)
    if metric in shared:
        return _by_metric(metric, candidate, champion, section, alpha)
    if judgement is None or judgement.trained_against:
        return None
    values = list(judgement.wins.values())
    wins, losses = sum(v > 0.5 for v in values), sum(v < 0.5 for v in values)
    test = sign_test(wins, losses, len(values) - wins - losses)
    interval = _interval([2.0 * value - 1.0 for value in values], section, alpha)
    return _from_sign(
        "sign test", judgement.judge, test, interval, alpha, judgement.human_agreement
    )


def _by_metric(
    metric: str, candidate: Scores, champion: Scores, section: GateSection, alpha: float
) -> Primary:
    ours, theirs = candidate.metrics[metric], champion.metrics[metric]
    differences = paired_differences(ours, theirs)
    interval = _interval(differences, section, alpha)
    if set(ours.values()) | set(theirs.values()) <= {0.0, 1.0}:
        test = mcnemar([value == 1.0 for value in ours.values()], [theirs[p] == 1.0 for p in ours])
        return _from_sign("exact McNemar", metric, test, interval, alpha)
    return Primary(
        test="paired bootstrap by prompt",
        judge=metric,
        p_value=None,
        better=interval.n > 0 and interval.low > 0.0,
        worse=interval.n > 0 and interval.high < 0.0,
        interval=interval,
    )


def _interval(differences: list[float], section: GateSection, alpha: float) -> Interval:
    return bootstrap(differences, confidence=1.0 - alpha, resamples=section.bootstrap_resamples)


def _from_sign(
    name: str,
    judge: str,
    test: SignTest,
    interval: Interval,
    alpha: float,
    human_agreement: float | None = None,
) -> Primary:
    return Primary(
        test=name,
        judge=judge,
        p_value=test.p_value,
        better=test.p_value <= alpha,
        worse=sign_test(test.losses, test.wins).p_value <= alpha,
        interval=interval,
        wins=test.wins,
        losses=test.losses,
        human_agreement=human_agreement,
    )


def _decide(
    primary: Primary | None, guardrails: list[Guardrail], section: GateSection, alpha: float
) -> tuple[Decision, list[str]]:
    failed = [rail.text for rail in guardrails if rail.state == "failed"]
    unproven = [rail.text for rail in guardrails if rail.state == "unproven"]
    if primary is None:
        return "inconclusive", [
            "There is no independent judge: give the recipe a task metric or retrain.judge, or "
            "promote by hand (`alignflow promote`). The reward model that trained the policy "
            "never judges it."
        ]
    if primary.worse:
        return "reject", [f"worse than the champion: {_in_words(primary, alpha)}", *failed]
    if failed:
        return "reject", failed
    if primary.interval.n < section.min_prompts:
        return "inconclusive", [
            f"{primary.interval.n} prompts are fewer than gate.min_prompts "
            f"({section.min_prompts}); add {section.min_prompts - primary.interval.n}"
        ]
    if not primary.better:
        return _not_better(primary, section, alpha)
    if unproven:
        return "inconclusive", unproven
    unmeasured = [rail.text for rail in guardrails if rail.state == "not_measured"]
    return "promote", [f"better than the champion: {_in_words(primary, alpha)}", *unmeasured]


def _not_better(primary: Primary, section: GateSection, alpha: float) -> tuple[Decision, list[str]]:
    if primary.interval.high < section.smallest_effect:
        return "reject", [
            f"not better by gate.smallest_effect ({section.smallest_effect:.1%}): "
            f"{_in_words(primary, alpha)}"
        ]
    return "inconclusive", [
        f"a gain of {section.smallest_effect:.1%} is neither shown nor ruled out: "
        f"{_in_words(primary, alpha)}"
    ]


def _in_words(primary: Primary, alpha: float) -> str:
    counts = (
        f", {primary.wins} wins and {primary.losses} losses" if primary.wins is not None else ""
    )
    p_value = f", p = {primary.p_value:.4g}" if primary.p_value is not None else ""
    interval = primary.interval
    return (
        f"{primary.judge} {interval.mean:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}] on "
        f"{interval.n} prompts{counts} ({primary.test}{p_value}, alpha {alpha:.4g})"
    )


# -- guardrails


def _guardrails(
    candidate: Scores, champion: Scores, base: Scores | None, section: GateSection
) -> list[Guardrail]:
    base_loss = base.general_loss if base else {}
    ratios = {
        prompt: candidate.length[prompt] / max(champion.length[prompt], 1.0)
        for prompt in candidate.length
        if prompt in champion.length
    }
    rails = [
        ("general_loss", section.max_general_loss_increase, _minus(candidate.general_loss, base_loss), "loss on general text above the original base"),
        ("unsafe", section.max_unsafe_increase, _minus(candidate.unsafe, champion.unsafe), "unsafe answers above the champion's"),
        ("kl", section.max_kl, list(candidate.kl.values()), "KL to the lineage's reference"),
    ]  # fmt: skip
    found = [
        _at_most(name, values, limit, text, section)
        for name, limit, values, text in rails
        if limit is not None
    ]
    if section.max_kl is not None and not candidate.kl:
        # Off unless asked for: what was asked for must be shown.
        found[-1] = found[-1].model_copy(update={"state": "unproven"})
    return [*found, *_length(candidate, champion, bool(ratios), section)]


def _minus(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    return [ours[name] - theirs[name] for name in ours if name in theirs]


def _at_most(
    name: str, values: list[float], limit: float, text: str, section: GateSection
) -> Guardrail:
    if not values:
        return Guardrail(name=name, state="not_measured", limit=limit, text=f"{text}: not measured")
    found = bootstrap(
        values, confidence=GUARDRAIL_CONFIDENCE, resamples=section.bootstrap_resamples
    )
    return _guardrail(name, text, found.mean, found.low, found.high, limit, float.__le__)


def _length(
    candidate: Scores, champion: Scores, measured: bool, section: GateSection
) -> list[Guardrail]:
    """Ratio of mean lengths, by the linearised difference `ours - ratio limit * theirs`."""
    text = "response length against the champion's"
    if not measured:
        limit = section.max_length_ratio
        return [Guardrail(name="length", state="not_measured", limit=limit, text=f"{text}: not measured")]  # fmt: skip
    prompts = [prompt for prompt in candidate.length if prompt in champion.length]
    ours = [candidate.length[prompt] for prompt in prompts]
    theirs = [champion.length[prompt] for prompt in prompts]
    mean = max(sum(theirs) / len(theirs), 1e-9)
    ratio = sum(ours) / len(ours) / mean
    residuals = [a / mean - ratio * b / mean for a, b in zip(ours, theirs, strict=True)]
    spread = bootstrap(
        residuals, confidence=GUARDRAIL_CONFIDENCE, resamples=section.bootstrap_resamples
    )
    low, high = ratio + spread.low, ratio + spread.high
    return [
        _guardrail("length_high", text, ratio, low, high, section.max_length_ratio, float.__le__),
        _guardrail("length_low", text, ratio, high, low, section.min_length_ratio, float.__ge__),
    ]


def _guardrail(
    name: str,
    text: str,
    value: float,
    best: float,
    worst: float,
    limit: float,
    within: Callable[[float, float], bool],
) -> Guardrail:
    """Passed if even the worst bound is within the limit, failed if even the best is not."""
    value, best, worst, limit = float(value), float(best), float(worst), float(limit)
    state: Literal["passed", "failed", "unproven"] = (
        "passed" if within(worst, limit) else "unproven" if within(best, limit) else "failed"
    )
    words = {
        "passed": f"{text}: {value:.3g}, bound {worst:.3g} within {limit:.3g}",
        "failed": f"{text}: {value:.3g}, limit {limit:.3g}",
        "unproven": f"{text}: {value:.3g}, but up to {worst:.3g} is possible, limit {limit:.3g}",
    }
    return Guardrail(
        name=name, state=state, value=value, bound=worst, limit=limit, text=words[state]
    )
