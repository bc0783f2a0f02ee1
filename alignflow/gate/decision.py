"""The promotion gate: is the candidate better than the champion, and does it harm nothing?

A verdict needs all of: a judge that is independent of training, enough prompts, a one-sided paired
test at the profile's alpha, and every guardrail by non-inferiority. Reasons name what decided.
"""

from __future__ import annotations

from typing import Any

from alignflow.evaluation import Scores
from alignflow.gate.guardrails import guardrails_of
from alignflow.gate.power import alpha_of, power_of
from alignflow.gate.primary import JudgedWins, Primary, primary_test
from alignflow.gate.verdict import Decision, Guardrail, Verdict
from alignflow.recipe import GateSection


def gate(
    candidate: Scores,
    champion: Scores,
    section: GateSection,
    *,
    evaluation: str,
    look: int = 1,
    base: Scores | None = None,
    judged: JudgedWins | None = None,
) -> Verdict:
    """Whether `candidate` replaces `champion`, scored on the pinned set that has digest `evaluation`.

    `look` says which test on this hold-out this is, from 1 (alpha spending of profile strict). The
    loss on general text is compared with `base`, the original model's; `judged` is used where no
    metric decides.

    Raises:
        ValueError: The two were not measured on the same prompts.
    """
    alpha = alpha_of(section, look)
    primary = primary_test(candidate, champion, section, alpha, judged)
    guardrails = guardrails_of(candidate, champion, base, section)
    verdict, reasons = _decide(primary, guardrails, section, alpha)
    return Verdict(
        verdict=verdict,
        reasons=reasons,
        candidate=candidate.model,
        champion=champion.model,
        evaluation=evaluation,
        profile=section.profile,
        look=look,
        alpha=alpha,
        guardrails=guardrails,
        **(_figures(primary, section, look) if primary else {}),
    )


def _figures(primary: Primary, section: GateSection, look: int) -> dict[str, Any]:
    """What a verdict keeps of the test that decided."""
    interval = primary.interval
    kept = {"test", "judge", "p_value", "wins", "losses", "human_agreement"}
    power = power_of(interval.n, section, look, primary.discordance)
    return {
        **primary.model_dump(include=kept),
        "prompts": interval.n,
        "effect": interval.mean,
        "interval": (interval.low, interval.high) if interval.n else None,
        "smallest_detectable": power.smallest_detectable,
    }


def _decide(
    primary: Primary | None, guardrails: list[Guardrail], section: GateSection, alpha: float
) -> tuple[Decision, list[str]]:
    failed, unproven, unmeasured = (
        [rail.text for rail in guardrails if rail.state == state]
        for state in ("failed", "unproven", "not_measured")
    )
    if primary is None:
        return "inconclusive", [
            "There is no independent judge: give the recipe a task metric or retrain.judge, or "
            "promote by hand (`alignflow promote`). The reward model that trained the policy "
            "never judges it."
        ]
    if primary.worse:
        return "reject", [f"worse than the champion: {primary.in_words(alpha)}", *failed]
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
    return "promote", [f"better than the champion: {primary.in_words(alpha)}", *unmeasured]


def _not_better(primary: Primary, section: GateSection, alpha: float) -> tuple[Decision, list[str]]:
    if primary.interval.high < section.smallest_effect:
        return "reject", [
            f"not better by gate.smallest_effect ({section.smallest_effect:.1%}): "
            f"{primary.in_words(alpha)}"
        ]
    return "inconclusive", [
        f"a gain of {section.smallest_effect:.1%} is neither shown nor ruled out: "
        f"{primary.in_words(alpha)}"
    ]
