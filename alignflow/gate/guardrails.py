"""What must not get worse, by non-inferiority: passed only if even the worst bound is within the limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from alignflow.evaluation import Scores, bootstrap
from alignflow.gate.verdict import Guardrail
from alignflow.recipe import GateSection

CONFIDENCE = 0.95


def guardrails_of(
    candidate: Scores, champion: Scores, base: Scores | None, section: GateSection
) -> list[Guardrail]:
    """Loss on general text, unsafe answers, KL where a limit is set, and response length."""
    above_base = _minus(candidate.general_loss, base.general_loss if base else {})
    above_champion = _minus(candidate.unsafe, champion.unsafe)
    loss_limit, unsafe_limit = section.max_general_loss_increase, section.max_unsafe_increase
    rails = [
        ("general_loss", loss_limit, above_base, "loss on general text above the original base"),
        ("unsafe", unsafe_limit, above_champion, "unsafe answers above the champion's"),
        ("kl", section.max_kl, list(candidate.kl.values()), "KL to the lineage's reference"),
    ]
    bounded = [
        _at_most(name, values, limit, text, section)
        for name, limit, values, text in rails
        if limit is not None
    ]
    if section.max_kl is not None and not candidate.kl:
        # Off unless asked for: what was asked for must be shown.
        bounded[-1] = bounded[-1].model_copy(update={"state": "unproven"})
    return [*bounded, *_length(candidate, champion, section)]


def _minus(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    return [ours[name] - theirs[name] for name in ours if name in theirs]


def _at_most(
    name: str, values: list[float], limit: float, text: str, section: GateSection
) -> Guardrail:
    if not values:
        return _not_measured(name, text, limit)
    above = bootstrap(values, confidence=CONFIDENCE, resamples=section.bootstrap_resamples)
    return _guardrail(name, text, above.mean, above.low, above.high, limit, float.__le__)


def _not_measured(name: str, text: str, limit: float) -> Guardrail:
    return Guardrail(name=name, state="not_measured", limit=limit, text=f"{text}: not measured")


def _length(candidate: Scores, champion: Scores, section: GateSection) -> list[Guardrail]:
    """Ratio of mean lengths, by the linearised difference `ours - ratio limit * theirs`."""
    text = "response length against the champion's"
    prompts = [prompt for prompt in candidate.length if prompt in champion.length]
    if not prompts:
        return [_not_measured("length", text, section.max_length_ratio)]
    ours = [candidate.length[prompt] for prompt in prompts]
    theirs = [champion.length[prompt] for prompt in prompts]
    mean = max(sum(theirs) / len(theirs), 1e-9)
    ratio = sum(ours) / len(ours) / mean
    residuals = [a / mean - ratio * b / mean for a, b in zip(ours, theirs, strict=True)]
    spread = bootstrap(residuals, confidence=CONFIDENCE, resamples=section.bootstrap_resamples)
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
        "passed": f"{text}: {value:.3g}, one-sided bound {worst:.3g} within {limit:.3g}",
        "failed": f"{text}: {value:.3g}, limit {limit:.3g}",
        "unproven": f"{text}: {value:.3g}, but up to {worst:.3g} is possible, limit {limit:.3g}",
    }
    return Guardrail(
        name=name, state=state, value=value, bound=worst, limit=limit, text=words[state]
    )
