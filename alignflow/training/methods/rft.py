"""Stage `rft`: rejection sampling fine-tuning (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).

    y* = argmax over k samples y ~ p0(.|x) of R(x, y);  keep (x, y*) if R(x, y*) > min_reward
    L  = mean over tokens of kept responses of -log p(token | prompt, tokens before it)

p0 is the policy's start, frozen: everything is sampled once, by our own sampler, and kept in the work
directory, so that another attempt learns the same responses. A response that did not end is never
kept. Left out: rounds of sampling from what was learned, for which the recipe is run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from alignflow.errors import DataError
from alignflow.files import read_certified, write_certified
from alignflow.models.generate import decode, respond
from alignflow.recipe.online import RFTSection
from alignflow.stages.spec import RowAccount
from alignflow.training.engine.fit import Measured
from alignflow.training.engine.job import Job
from alignflow.training.engine.rows import Row
from alignflow.training.engine.supervised import Supervised
from alignflow.training.rl.online import demand_good_reward, reward_functions
from alignflow.training.rl.prompts import Prompts, read_prompts
from alignflow.training.rl.rollouts import Prompt

SAMPLES_FILE = "samples.json"
"""In the stage's work directory."""


class Sample(NamedTuple):
    """A response and what it is worth."""

    ids: list[int]
    """With the end token that closed it."""
    ended: bool
    reward: float


def best_of(samples: Sequence[Sample], min_reward: float | None) -> Sample | None:
    """The finished sample of the highest reward, the first of equals; None where that is too low."""
    finished = [sample for sample in samples if sample.ended]
    best = max(finished, key=lambda sample: sample.reward, default=None)
    if best is None or (min_reward is not None and best.reward <= min_reward):
        return None
    return best


class RFT(Supervised[RFTSection]):
    """Learns the best of its own responses."""

    section = RFTSection

    def __init__(self, job: Job[RFTSection]) -> None:
        demand_good_reward(job)
        super().__init__(job)

    @cached_property
    def prompts(self) -> Prompts:
        """What is answered."""
        return read_prompts(self.job)

    @cached_property
    def samples(self) -> list[list[Sample]]:
        """Of each prompt, those of an earlier attempt where it came so far."""
        path = self.job.work / SAMPLES_FILE
        if (known := read_certified(path)) is None:
            known = sampled(self.job, self.model, self.prompts.trained)
            write_certified(path, known)
        return [[Sample(*sample) for sample in group] for group in known]

    @cached_property
    def rows(self) -> list[Row]:
        """Prompts with the response that is kept.

        Raises:
            DataError: There is none.
        """
        limit = self.job.section.min_reward
        best = [best_of(group, limit) for group in self.samples]
        pairs = zip(self.prompts.trained, best, strict=True)
        kept = [(prompt.ids, sample.ids) for prompt, sample in pairs if sample is not None]
        if not kept:
            finished = [one.reward for group in self.samples for one in group if one.ended]
            highest = f"the highest reward is {max(finished):g}" if finished else "none ended"
            raise DataError(
                f"None of {len(best)} prompts has a response to learn from: of "
                f"{self.job.section.num_generations} each {highest}, rft.min_reward is {limit}. "
                "Lower it, or raise rft.num_generations or rft.max_new_tokens."
            )
        return [
            {"input_ids": [*ids, *own], "completion_mask": [0] * len(ids) + [1] * len(own)}
            for ids, own in kept
        ]

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        """Of what was sampled, and of what was kept of it."""
        every = [sample for group in self.samples for sample in group]
        best = [best_of(group, self.job.section.min_reward) for group in self.samples]
        kept = [sample.reward for sample in best if sample is not None]
        metrics = {
            "reward": sum(kept) / len(kept),
            "sampled_reward": sum(sample.reward for sample in every) / len(every),
            "kept_rate": len(kept) / len(best),
            "unfinished_rate": sum(not sample.ended for sample in every) / len(every),
        }
        return Measured(metrics, {"samples": len(every), "tokens": last.get("num_tokens")})

    def account(self) -> RowAccount:
        """A prompt that stands twice is answered once."""
        rows, distinct, kept = self.prompts.rows, len(self.prompts.trained), len(self.rows)
        lost = {"duplicate": rows.trained - distinct, "no_good_response": distinct - kept}
        dropped = dict(Counter(rows.dropped) + Counter(lost))
        return rows.model_copy(update={"trained": kept, "dropped": dropped})


def sampled(job: Job[RFTSection], model: Any, prompts: list[Prompt]) -> list[list[Sample]]:
    """`num_generations` responses to each prompt with the weighted sum of their rewards."""
    section = job.section
    asked = [prompt for prompt in prompts for _ in range(section.num_generations)]
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
        "completions": decode(job.tokenizer, responses),
        "completion_ids": [response.ids for response in responses],
        "target": [prompt.target for prompt in asked],
    }
    rewards = [0.0] * len(asked)
    functions = reward_functions(job, {prompt.text: prompt.ids for prompt in prompts})
    for term, function in zip(section.rewards, functions, strict=True):
        scores = function(**given)
        rewards = [r + term.weight * score for r, score in zip(rewards, scores, strict=True)]
    pairs = zip(responses, rewards, strict=True)
    samples = [Sample(response.ids, response.ended, reward) for response, reward in pairs]
    k = section.num_generations
    return [samples[start : start + k] for start in range(0, len(samples), k)]


run = RFT.run
