"""What RLOO and GRPO share: TRL's trainers on our prompts and our sources of reward.

TRL samples, scores and learns; what is ours is that prompts are the token ids that `prepare` made,
that each update samples its own batch, so that every checkpoint stands between two of them, and that
a reward model reads token ids and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from alignflow.errors import DataError
from alignflow.models import answers, load_reward_model, reward_scores
from alignflow.recipe import REWARD_MODEL, OnlineSection, SampledSection
from alignflow.stages import RowAccount, read_manifest
from alignflow.training.engine import Job, Measured, Method, QuietTrainer
from alignflow.training.reward_gate import weakness
from alignflow.training.rl.prompts import Prompts, read_prompts
from alignflow.training.rl.reward_sources import RewardFunction, load_rewards
from alignflow.training.rl.rollouts import Prompt

Score = Callable[..., list[float]]
AnySampled = TypeVar("AnySampled", bound=SampledSection)
AnyOnline = TypeVar("AnyOnline", bound=OnlineSection)


class OnlineTrainer(QuietTrainer):
    """Mixed in before TRL's: a prompt's ids are looked up, not made of its text again."""

    def __init__(self, *, prompt_ids: dict[str, list[int]], **options: Any) -> None:
        self.prompt_ids = prompt_ids
        super().__init__(**options)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompt_ids[prompt] for prompt in prompts], None, {}


class OnPrompts(Method[AnySampled]):
    """Learns from responses that the policy itself samples to prompts."""

    logged: ClassVar = {
        "entropy": "entropy",
        "response_tokens": "completions/mean_length",
        "unfinished_rate": "completions/clipped_ratio",
    }

    @cached_property
    def prompts(self) -> Prompts:
        """What is answered."""
        return read_prompts(self.job)

    @cached_property
    def rows(self) -> list[Prompt]:
        """Prompts to train on."""
        return self.prompts.trained

    @property
    def prompt_ids(self) -> dict[str, list[int]]:
        """Token ids of each prompt's text."""
        return {prompt.text: prompt.ids for prompt in self.rows}

    def arguments(self) -> dict[str, Any]:
        """How responses are sampled."""
        section = self.job.section
        return {
            "max_completion_length": section.max_new_tokens,
            "temperature": section.temperature,
        }

    def features(self, row: Prompt) -> dict[str, Any]:
        """The prompt, and what an answer is rewarded by."""
        return {"prompt": row.text, "target": row.target}

    def length(self, row: Prompt) -> int:
        """Of the prompt alone."""
        return len(row.ids)

    def options(self) -> dict[str, Any]:
        """The prompts' token ids."""
        return {"prompt_ids": self.prompt_ids}

    def account(self) -> RowAccount:
        """Of the part that the prompts are of."""
        return self.prompts.rows


class Rewarded(OnPrompts[AnyOnline]):
    """Compares rewards of several responses to a prompt."""

    logged: ClassVar = {
        **{name: name for name in ("reward", "reward_std", "kl")},
        **OnPrompts.logged,
    }

    def __init__(self, job: Job[AnyOnline]) -> None:
        demand_good_reward(job)
        super().__init__(job)

    def arguments(self) -> dict[str, Any]:
        """How many responses are compared, and what each reward weighs."""
        section = self.job.section
        return {
            **super().arguments(),
            "num_generations": section.num_generations,
            "reward_weights": [term.weight for term in section.rewards],
        }

    def examples(self) -> int:
        """Responses to all prompts."""
        return len(self.rows) * self.job.section.num_generations

    def options(self) -> dict[str, Any]:
        """The rewards too."""
        functions = reward_functions(self.job, self.prompt_ids)
        return {**super().options(), "reward_funcs": functions}

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        """What was sampled; the figures are those of the last update."""
        episodes = trainer.state.global_step * self.job.section.batch_size
        return Measured({}, {"prompts": len(self.rows), "episodes": episodes})


def demand_good_reward(job: Job[Any]) -> None:
    """Refuses to optimize a reward model that cannot tell held-out pairs apart.

    Raises:
        DataError: Its accuracy is too low, or its 95 % interval reaches 0.5.
    """
    if not job.section.uses_reward_model:
        return
    if reason := weakness(read_manifest(job.spec.input("reward")).result, job.section):
        raise DataError(reason)


def reward_functions(job: Job[Any], prompt_ids: dict[str, list[int]]) -> list[Score]:
    """A function per term of the rewards, in their order, named after its source.

    Each takes `prompts` as text, `completion_ids` and `target`, and gives scores.
    """
    functions = load_rewards(job.section.rewards, job.reward_files)
    return [
        _model_score(job, prompt_ids)
        if term.source == REWARD_MODEL
        else _function_score(term.source, functions[term.source], job.tokenizer)
        for term in job.section.rewards
    ]


def _function_score(source: str, function: RewardFunction, tokenizer: Any) -> Score:
    def score(
        prompts: list[str], completion_ids: list[list[int]], target: list[str | None], **_: Any
    ) -> list[float]:
        return function(prompts, answers(tokenizer, completion_ids), target).tolist()

    score.__name__ = source.rpartition(":")[2]
    return score


def _model_score(job: Job[Any], prompt_ids: dict[str, list[int]]) -> Score:
    """The reward model, loaded beside the policy."""
    model = load_reward_model(
        job.base, job.spec.input("reward"), dtype=job.dtype, quantization=job.quantization
    )

    def score(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = [
            [*prompt_ids[prompt], *response]
            for prompt, response in zip(prompts, completion_ids, strict=True)
        ]
        return reward_scores(model, rows, pad=job.tokenizer.pad_token_id, batch_size=32)

    score.__name__ = REWARD_MODEL
    return score
