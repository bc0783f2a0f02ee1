"""The test that decides: candidate against champion by prompt, one-sided and paired."""

from __future__ import annotations

from alignflow.evaluation import (
    Interval,
    Scores,
    SignTest,
    bootstrap,
    mcnemar,
    paired_differences,
    sign_test,
)
from alignflow.recipe import GateSection
from alignflow.stages import Record

REFUSED_JUDGES = frozenset({"reward", "reward_model", "score"})


class JudgedWins(Record):
    """Wins of the candidate by prompt, from a judge that saw both orders."""

    judge: str
    wins: dict[str, float]
    """1 won, 0 lost, 0.5 tie or disagreement between the two orders."""
    trained_against: bool = False
    """Whether the candidate was optimised against this judge."""
    human_agreement: float | None = None
    """Share of the hold-out's human preferences that the judge shares."""


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

    @property
    def discordance(self) -> float | None:
        """Share of prompts on which the models differ; None where wins are not counted."""
        if self.wins is None or self.losses is None or not self.interval.n:
            return None
        return (self.wins + self.losses) / self.interval.n

    def in_words(self, alpha: float) -> str:
        """Effect, interval, counts and test: that it is better, or the contrary where it is worse."""
        counts = f", {self.wins} wins and {self.losses} losses" if self.wins is not None else ""
        side = "one-sided for worse" if self.worse else "one-sided"
        chance = self._p_value_of_side()
        p_value = f", p = {chance:.4g}" if chance is not None else ""
        interval = self.interval
        return (
            f"{self.judge} {interval.mean:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}] on "
            f"{interval.n} prompts{counts} ({self.test}, {side}{p_value}, alpha {alpha:.4g})"
        )

    def _p_value_of_side(self) -> float | None:
        if self.worse and self.wins is not None and self.losses is not None:
            return sign_test(self.losses, self.wins).p_value
        return self.p_value


def primary_test(
    candidate: Scores,
    champion: Scores,
    section: GateSection,
    alpha: float,
    judged: JudgedWins | None,
) -> Primary | None:
    """The deciding comparison, or None without an independent judge."""
    shared = [
        name
        for name in candidate.metrics
        if name in champion.metrics and name not in REFUSED_JUDGES
    ]
    metric = section.metric or (shared[0] if shared else None)
    if metric in shared:
        return _by_metric(metric, candidate, champion, section, alpha)
    if judged is None or judged.trained_against:
        return None
    values = list(judged.wins.values())
    wins, losses = sum(v > 0.5 for v in values), sum(v < 0.5 for v in values)
    test = sign_test(wins, losses, len(values) - wins - losses)
    interval = _interval([2.0 * value - 1.0 for value in values], section, alpha)
    primary = _from_sign("sign test", judged.judge, test, interval, alpha)
    return primary.model_copy(update={"human_agreement": judged.human_agreement})


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


def _from_sign(name: str, judge: str, test: SignTest, interval: Interval, alpha: float) -> Primary:
    return Primary(
        test=name,
        judge=judge,
        p_value=test.p_value,
        better=test.p_value <= alpha,
        worse=sign_test(test.losses, test.wins).p_value <= alpha,
        interval=interval,
        wins=test.wins,
        losses=test.losses,
    )
