"""A task metric on held-out prompts while PPO trains: rewards can rise while the task is unlearned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from alignflow.errors import DataError
from alignflow.evaluation import compute_metric, load_metrics
from alignflow.models import answers, respond
from alignflow.recipe import EvaluationSection, WatchSection
from alignflow.training.rl.rollouts import Prompt, Setting

SEED = 977
"""All evaluations draw with one seed, so that their differences are the policy's."""


class Watched(NamedTuple):
    """Evaluations so far."""

    history: list[tuple[int, float]]
    """(updates made, figure)."""

    @property
    def best(self) -> tuple[int, float]:
        """The first of the highest figure."""
        return max(self.history, key=lambda entry: (entry[1], -entry[0]))

    @property
    def misses(self) -> int:
        """Evaluations since the best one."""
        return len(self.history) - 1 - self.history.index(self.best)


class Watch:
    """Answers held-out prompts and scores them with a metric; higher is better.

    Raises:
        DataError: No held-out prompt has a target.
    """

    def __init__(self, section: WatchSection, prompts: Sequence[Prompt]) -> None:
        self.section = section
        self._prompts = [p for p in prompts if p.target is not None][: section.examples]
        if not self._prompts:
            raise DataError(
                "ppo.watch needs held-out prompts with a target, and data.prompts leaves none. "
                "Raise data.held_out_share, or give the rows a column `target`."
            )
        (self._metric,) = load_metrics(EvaluationSection(metrics=[section.metric]))

    def due(self, update: int, updates: int) -> bool:
        """Whether to evaluate after so many updates."""
        return update % self.section.every == 0 or update == updates

    def measure(self, setting: Setting) -> float:
        """The metric of one sampled response to each prompt."""
        with setting.roles.generating() as policy:
            responses = respond(
                policy,
                setting.tokenizer,
                [prompt.ids for prompt in self._prompts],
                max_new_tokens=setting.section.max_new_tokens,
                temperature=setting.section.temperature,
                seed=SEED,
            )
        texts = answers(setting.tokenizer, [r.ids for r in responses])
        targets = [prompt.target for prompt in self._prompts]
        return compute_metric(self._metric, texts, targets).figure

    def exhausted(self, watched: Watched) -> bool:
        """Whether the metric has not risen for `patience` evaluations."""
        patience = self.section.patience
        return patience is not None and watched.misses >= patience


def describe(watched: Watched, section: WatchSection, kept: int) -> dict[str, Any]:
    """For the report."""
    update, figure = watched.best
    return {
        "watched_metric": section.name,
        "watched": [list(entry) for entry in watched.history],
        "best_update": update,
        "best": figure,
        "kept_update": kept,
    }
