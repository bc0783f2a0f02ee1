"""From a table of values to what is recommended, in a sentence with its reasons. No torch.

The choice part has named a contender; the verdict part tests it against each arm, and each arm
against base. All these tests are one family under Holm, so that the level bounds the chance of any
false "A beats B"; the same tests within groups of questions are a second family. Oracle is in none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alignflow.deciding.arms import BASE, ORACLE
from alignflow.deciding.statistics import (
    Comparison,
    Values,
    compared,
    detectable,
    holm,
    questions_needed,
)
from alignflow.stages import Record

MOST_QUESTIONS = 1_000_000
LEAST_IN_GROUP = 10
"""Questions of a group that is tested by itself."""


class Beats(Record):
    """One test: whether the first arm is better than the second."""

    first: str
    second: str
    difference: float
    p_value: float
    adjusted: float
    """By Holm, over its family."""
    shown: bool


class Verdict(Record):
    """What came out."""

    contender: str
    """The best of the choice part."""
    recommended: str | None
    ties: list[str]
    """Arms that beat base too and are not shown worse than the contender."""
    questions: int
    questions_needed: int | None
    """That would tell, where it is inconclusive; None where it is not, or where no number would."""
    detectable: float
    """Smallest difference between contender and base that these questions would find."""
    tests: list[Beats]
    groups: dict[str, Verdict]
    """The same for groups of questions."""

    def shown(self, first: str, second: str) -> bool:
        """Whether the first arm was shown to be better than the second."""
        return any(t.shown for t in self.tests if (t.first, t.second) == (first, second))

    def beaten(self, arm: str) -> bool:
        """Whether the contender was shown to be better."""
        return self.shown(self.contender, arm)


class Rules(NamedTuple):
    """What the tests are held to."""

    alpha: float
    power: float
    smallest_effect: float


def contender_of(choice: Mapping[str, float], costs: Mapping[str, float]) -> str:
    """The arm with the highest accuracy on the choice part; of equal ones the cheapest."""
    eligible = [arm for arm in choice if arm != ORACLE]
    return max(eligible, key=lambda arm: (choice[arm], -costs[arm]))


def hypotheses(arms: Sequence[str], contender: str) -> list[tuple[str, str]]:
    """What is tested: the contender against each arm, and each arm against base."""
    against_base = [(arm, BASE) for arm in arms if arm not in (BASE, ORACLE)]
    of_contender = [(contender, arm) for arm in arms if arm not in (contender, ORACLE)]
    return list(dict.fromkeys([*against_base, *of_contender]))


def verdict_of(
    values: Mapping[str, Values],
    groups: Sequence[str],
    contender: str,
    costs: Mapping[str, float],
    rules: Rules,
) -> Verdict:
    """The verdict on all questions, and on those of each group.

    Args:
        values: [seeds, questions] of each arm, questions in one order.
        groups: Of the questions.
        contender: From the choice part; never from these values.
        costs: Of a thousand questions by each arm.
        rules: Level and power.
    """
    pairs = hypotheses(list(values), contender)
    whole = {pair: compared(values[pair[0]], values[pair[1]]) for pair in pairs}
    decided = _decided(whole, _holm({"": whole})[""], contender, costs, rules, len(groups))
    places = {
        name: np.array([place for place, group in enumerate(groups) if group == name])
        for name in dict.fromkeys(groups)
    }
    tested = {n: at for n, at in places.items() if len(at) >= LEAST_IN_GROUP and len(places) > 1}
    within = {
        name: {(a, b): compared(values[a][:, at], values[b][:, at]) for a, b in pairs}
        for name, at in tested.items()
    }
    adjusted = _holm(within)
    of_groups = {
        name: _decided(found, adjusted[name], contender, costs, rules, len(tested[name]))
        for name, found in within.items()
    }
    return decided.model_copy(update={"groups": of_groups})


Pair = tuple[str, str]


def _holm(families: Mapping[str, Mapping[Pair, Comparison]]) -> dict[str, dict[Pair, float]]:
    """Adjusted p-values over all tests of all groups given."""
    flat = {
        f"{name}\0{a}\0{b}": c.p_value
        for name, own in families.items()
        for (a, b), c in own.items()
    }
    adjusted = holm(flat)
    return {
        name: {(a, b): adjusted[f"{name}\0{a}\0{b}"] for a, b in own}
        for name, own in families.items()
    }


def _decided(
    found: Mapping[Pair, Comparison],
    adjusted: Mapping[Pair, float],
    contender: str,
    costs: Mapping[str, float],
    rules: Rules,
    questions: int,
) -> Verdict:
    tests = [
        Beats(
            first=a,
            second=b,
            difference=c.difference,
            p_value=c.p_value,
            adjusted=adjusted[a, b],
            shown=adjusted[a, b] <= rules.alpha,
        )
        for (a, b), c in found.items()
    ]
    beat_base = [test.first for test in tests if test.second == BASE and test.shown]
    worse = {test.second for test in tests if test.first == contender and test.shown}
    left = sorted((arm for arm in beat_base if arm not in worse), key=lambda arm: costs[arm])
    rivals = {test.second for test in tests if test.first == contender}
    if contender == BASE and rivals and rivals == worse:
        left = [BASE]
    needed, least = _what_would_tell(found, contender, rules, questions)
    return Verdict(
        contender=contender,
        recommended=left[0] if left else None,
        ties=left[1:],
        questions=questions,
        questions_needed=None if left else needed,
        detectable=least,
        tests=tests,
        groups={},
    )


def _what_would_tell(
    found: Mapping[Pair, Comparison], contender: str, rules: Rules, questions: int
) -> tuple[int | None, float]:
    """Questions that would show the contender's lead over base, and the lead that these would show."""
    own = found.get((contender, BASE)) or max(found.values(), key=lambda c: c.spread, default=None)
    if own is None:
        return None, 0.0
    alpha = rules.alpha / len(found)
    effect = max(own.difference, rules.smallest_effect)
    needed = questions_needed(own, effect, alpha, rules.power)
    if needed is not None:
        # the tests that were made did not find it, whatever the formula says
        needed = max(needed, questions + 1)
    too_many = needed is None or needed > MOST_QUESTIONS
    return None if too_many else needed, detectable(own, questions, alpha, rules.power)


def sentence(verdict: Verdict, accuracy: Mapping[str, float], costs: Mapping[str, float]) -> str:
    """What is recommended, and why."""
    if verdict.recommended is None:
        return _inconclusive(verdict, accuracy)
    chosen = verdict.recommended
    if chosen == BASE:
        return (
            f"Stay with base: it answers {accuracy[BASE]:.0%} right, and every other arm is shown "
            "worse."
        )
    parts = [_gain(chosen, BASE, accuracy)]
    if verdict.contender != chosen:
        reason = "not shown better" if not verdict.beaten(chosen) else "better"
        parts.append(
            f"{verdict.contender}, the best of the choice part, is {reason} and costs "
            f"{_times(costs[verdict.contender], costs[chosen])} as much"
        )
    worse = [arm for arm in accuracy if arm not in (chosen, BASE) and verdict.beaten(arm)]
    if worse and verdict.contender == chosen:
        nearest = max(worse, key=lambda arm: accuracy[arm])
        parts.append(
            f"{_gain(chosen, nearest, accuracy)}, which costs {_times(costs[nearest], costs[chosen])} "
            "as much"
        )
    ties = [arm for arm in verdict.ties if arm != verdict.contender]
    told = f" Not told apart from it: {', '.join(ties)}." if ties else ""
    return f"{chosen}: {'; '.join(parts)}.{told}{_mix(verdict)}"


def _inconclusive(verdict: Verdict, accuracy: Mapping[str, float]) -> str:
    contender = verdict.contender
    lead = accuracy[contender] - accuracy[BASE]
    what = (
        f"base is the best of the choice part and answers {accuracy[BASE]:.0%} right, "
        "and not every other arm is shown worse"
        if contender == BASE
        else f"{contender} leads base by {100 * lead:.0f} points, which "
        f"{verdict.questions} questions do not show (they show {100 * verdict.detectable:.0f})"
    )
    if all(test.difference == 0.0 for test in verdict.tests):
        told = "All arms answer equally many right; what sets them apart is not asked, or too hard"
    elif verdict.questions_needed is None:
        told = "No number of questions would tell at this size of the effect; more seeds may"
    else:
        told = f"About {verdict.questions_needed:,} questions in the verdict part would tell"
    return f"Inconclusive: {what}. {told}.{_mix(verdict)}"


def _gain(first: str, second: str, accuracy: Mapping[str, float]) -> str:
    return f"{100 * (accuracy[first] - accuracy[second]):.0f} points over {second}"


def _times(cost: float, other: float) -> str:
    if other <= 0.0:
        return "more" if cost > 0 else "just"
    ratio = cost / other
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _mix(verdict: Verdict) -> str:
    """Groups whose recommendation is another than that of all."""
    others = {
        name: own.recommended
        for name, own in verdict.groups.items()
        if own.recommended not in (None, verdict.recommended)
    }
    told = "; ".join(f"for the questions of group {name}: {arm}" for name, arm in others.items())
    return f" But {told}." if told else ""
