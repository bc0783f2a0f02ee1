"""Stage `rft`: rejection sampling fine-tuning (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).

    y* = argmax over k samples y ~ p0(.|x) of R(x, y);  (x, y*) is kept if R(x, y*) > min_reward
    L  = mean over tokens of kept responses of -log p(token | prompt, tokens before it)

p0 is the policy's start, frozen: all is sampled once, and kept in the work directory for another
attempt. A response that did not end is never learned. Left out: rounds of sampling from the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from operator import mul
from statistics import fmean
from typing import Any, NamedTuple

from alignflow.errors import DataError
from alignflow.files import read_certified, write_certified
from alignflow.models import respond
from alignflow.recipe import RFTSection
from alignflow.stages import RowAccount
from alignflow.training.engine import Job, Measured, Row, Supervised
from alignflow.training.rl import (
    Prompt,
    Prompts,
    demand_good_reward,
    read_prompts,
    reward_functions,
)

SAMPLES_FILE = "samples.json"
"""In the stage's work directory."""


class Sample(NamedTuple):
    """A response with its end token, whether it has one, and what it is worth."""

    ids: list[int]
    ended: bool
    reward: float


def best_of(samples: Sequence[Sample], min_reward: float | None) -> Sample | None:
    """The finished sample of the highest reward, the first of equals; None where that is too low."""
    finished = [sample for sample in samples if sample.ended]
    best = max(finished, key=lambda sample: sample.reward, default=None)
    return best if best and (min_reward is None or best.reward > min_reward) else None


class RFT(Supervised[RFTSection]):
    """Learns the best of its own responses."""

    section = RFTSection

    @cached_property
    def prompts(self) -> Prompts:
        """What is answered."""
        return read_prompts(self.job)

    @cached_property
    def samples(self) -> list[list[Sample]]:
        """Of each prompt; those of an earlier attempt where it came so far."""
        path = self.job.work / SAMPLES_FILE
        known: Any = read_certified(path)
        if known is None:
            known = sampled(self.job, self.model, self.prompts.trained)
            write_certified(path, known)
        return [[Sample(*sample) for sample in group] for group in known]

    @cached_property
    def best(self) -> list[Sample | None]:
        """Of each prompt, what is kept."""
        return [best_of(group, self.job.section.min_reward) for group in self.samples]

    @cached_property
    def rows(self) -> list[Row]:
        """Prompts with the response that is kept.

        Raises:
            DataError: There is none.
        """
        pairs = zip(self.prompts.trained, self.best, strict=True)
        kept = [(prompt.ids, best.ids) for prompt, best in pairs if best]
        if not kept:
            worth = [one.reward for one in chain(*self.samples) if one.ended]
            raise DataError(
                f"None of {len(self.best)} prompts has a finished response above rft.min_reward "
                f"{self.job.section.min_reward}; the best of {len(worth)} that ended is worth "
                f"{max(worth, default=None)}. Lower it, or raise num_generations or max_new_tokens."
            )
        return [
            {"input_ids": ids + own, "completion_mask": [0] * len(ids) + [1] * len(own)}
            for ids, own in kept
        ]

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        """Of what was sampled, and of what was kept of it."""
        every = list(chain(*self.samples))
        metrics = {
            "reward": fmean(best.reward for best in self.best if best),
            "sampled_reward": fmean(sample.reward for sample in every),
            "kept_rate": len(self.rows) / len(self.best),
            "unfinished_rate": fmean(not sample.ended for sample in every),
        }
        return Measured(metrics, {"samples": len(every), "tokens": last.get("num_tokens")})

    def account(self) -> RowAccount:
        """A prompt that stands twice is answered once."""
        rows, distinct, kept = self.prompts.rows, len(self.best), len(self.rows)
        lost = Counter(duplicate=rows.trained - distinct, no_good_response=distinct - kept)
        dropped = dict(Counter(rows.dropped) + lost)
        return rows.model_copy(update={"trained": kept, "dropped": dropped})


def sampled(job: Job[RFTSection], model: Any, prompts: list[Prompt]) -> list[list[Sample]]:
    """`num_generations` responses to each prompt, with the weighted sum of their rewards."""
    demand_good_reward(job)
    section, k = job.section, job.section.num_generations
    functions = reward_functions(job, {prompt.text: prompt.ids for prompt in prompts})
    asked = [prompt for prompt in prompts for _ in range(k)]
    responses = respond(
        model,
        job.tokenizer,
        [prompt.ids for prompt in asked],
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        seed=job.spec.seed,
        progress=lambda done: job.events.progress(done, len(asked), "samples"),
    )
    given = {
        "prompts": [prompt.text for prompt in asked],
        "completion_ids": [response.ids for response in responses],
        "target": [prompt.target for prompt in asked],
    }
    scores = zip(*(function(**given) for function in functions), strict=True)
    weights = [term.weight for term in section.rewards]
    samples = [
        Sample(response.ids, response.ended, sum(map(mul, weights, values)))
        for response, values in zip(responses, scores, strict=True)
    ]
    return [samples[start : start + k] for start in range(0, len(samples), k)]


run = RFT.run
