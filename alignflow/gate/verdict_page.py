"""A verdict as a page of Markdown, for whoever has to believe or to approve it."""

from __future__ import annotations

from alignflow.gate.gate import Verdict


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
    found = [
        ("judged by", verdict.judge or "nobody"),
        ("test", f"{verdict.test or 'none'}, look {verdict.look}, alpha {verdict.alpha:.4g}"),
        ("prompts", str(verdict.prompts)),
    ]
    if verdict.wins is not None:
        found.append(("wins and losses", f"{verdict.wins} and {verdict.losses}"))
    if verdict.interval is not None and verdict.effect is not None:
        low, high = verdict.interval
        found.append(("effect", f"{verdict.effect:+.1%} [{low:+.1%}, {high:+.1%}]"))
    if verdict.smallest_detectable is not None:
        found.append(("smallest detectable gain", f"{verdict.smallest_detectable:.1%}"))
    if verdict.human_agreement is not None:
        found.append(("judge agrees with humans", f"{verdict.human_agreement:.1%}"))
    return found
