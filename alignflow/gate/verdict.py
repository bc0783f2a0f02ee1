"""What the gate says of a candidate: a record for the ledger and the report, and a page for a person."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from alignflow.stages import Record

Decision = Literal["promote", "reject", "inconclusive"]


class Guardrail(Record):
    """One thing that must not get worse."""

    name: str
    state: Literal["passed", "failed", "unproven", "not_measured"]
    value: float | None = None
    bound: float | None = None
    """Upper (for a lower limit: lower) 95 % bound of `value`."""
    limit: float
    text: str


class Flip(Record):
    """A prompt on which candidate and champion differ: what was said stands in their evaluations.

    No texts here: the verdict goes to databases that `prefs erase` does not reach.
    """

    prompt_index: int
    """Of the prompt in both evaluations."""
    before: float
    """The champion's score by what decided: 1 right, or preferred by the judge."""
    after: float
    """The candidate's."""


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
    flips: list[Flip] = Field(default_factory=list)
    """The most telling ones."""


def as_page(verdict: Verdict, generation: int) -> str:
    """The comparison with the champion of a generation."""
    lines = [
        f"## {verdict.verdict.capitalize()}: candidate against generation {generation}",
        "",
        *(f"- {reason}" for reason in verdict.reasons),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _figures(verdict)),
        *(f"| guardrail {rail.name} | {rail.state}: {rail.text} |" for rail in verdict.guardrails),
        "",
        f"candidate `{verdict.candidate[:12]}`, champion `{verdict.champion[:12]}`",
    ]
    return "\n".join(lines)


def _figures(verdict: Verdict) -> list[tuple[str, str]]:
    figures = [
        ("judged by", verdict.judge or "nobody"),
        ("test", f"{_test(verdict)}, look {verdict.look}, alpha {verdict.alpha:.4g}"),
        ("prompts", str(verdict.prompts)),
    ]
    if verdict.wins is not None:
        figures.append(("wins and losses", f"{verdict.wins} and {verdict.losses}"))
    if verdict.interval is not None and verdict.effect is not None:
        low, high = verdict.interval
        bounds = f"[{low:+.1%}, {high:+.1%}], each bound one-sided"
        figures.append(("effect", f"{verdict.effect:+.1%} {bounds}"))
    if verdict.smallest_detectable is not None:
        figures.append(("smallest detectable gain", f"{verdict.smallest_detectable:.1%}"))
    if verdict.human_agreement is not None:
        figures.append(("judge agrees with humans", f"{verdict.human_agreement:.1%}"))
    return figures


def _test(verdict: Verdict) -> str:
    return f"{verdict.test}, one-sided" if verdict.test else "none"
