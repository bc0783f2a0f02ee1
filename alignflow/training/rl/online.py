"""What RLOO and GRPO share: TRL's trainers on our prompts and our sources of reward.

TRL samples, scores and learns; what is ours is that prompts are the token ids that `prepare` made,
that each update samples its own batch, so that every checkpoint stands between two of them, and that
a reward model reads token ids and no text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from alignflow.errors import DataError
from alignflow.models.loading import load_reward_model, quiet
from alignflow.models.scoring import reward_scores
from alignflow.recipe import OnlineSection
from alignflow.recipe.rewards import REWARD_MODEL
from alignflow.stages.artifacts import read_manifest
from alignflow.stages.spec import StageResult
from alignflow.training.engine.common import Job, train, training_arguments
from alignflow.training.engine.continuing import continue_from_champion
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.preferences import starting_policy
from alignflow.training.engine.saving import parameters, save
from alignflow.training.engine.trainer import QuietTrainer
from alignflow.training.reward_gate import weakness
from alignflow.training.rl.prompts import Prompts, read_prompts
from alignflow.training.rl.reward_sources import RewardFunction, load_rewards

Score = Callable[..., list[float]]


class OnlineTrainer(QuietTrainer):
    """Mixed in before TRL's: a prompt's ids are looked up, not made of its text again."""

    prompt_ids: dict[str, list[int]]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompt_ids[prompt] for prompt in prompts], None, {}


def run_online(job: Job[Any], kind: Any, configuration: Any, **own: Any) -> StageResult:
    """Trains and says how rewards ended.

    Args:
        job: The stage's spec, read.
        kind: The trainer's class.
        configuration: Its configuration's class.
        own: What the method adds to that.
    """
    section: OnlineSection = job.section
    if section.uses_reward_model:
        _demand_good_reward(job)
    prompts = read_prompts(job)
    model = starting_policy(job)
    trainer = _trainer(job, kind, configuration, model, prompts, own)
    make_ready(trainer, job)
    continue_from_champion(model, job)
    params = parameters(model, job, trainer.args)
    last = train(trainer, job)
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
        model.set_adapter("default")
    save(model, job)
    return StageResult(
        metrics={
            "reward": last.get("reward"),
            "reward_std": last.get("reward_std"),
            "kl": last.get("kl"),
            "entropy": last.get("entropy"),
            "response_tokens": last.get("completions/mean_length"),
            "unfinished_rate": last.get("completions/clipped_ratio"),
        },
        rows=prompts.rows,
        params=params,
        details={
            "prompts": len(prompts.trained),
            "steps": trainer.state.global_step,
            "episodes": trainer.state.global_step * section.batch_size,
        },
    )


def _demand_good_reward(job: Job[Any]) -> None:
    if reason := weakness(read_manifest(job.spec.input("reward")).result, job.section):
        raise DataError(reason)


def _trainer(
    job: Job[Any],
    kind: Any,
    configuration: Any,
    model: Any,
    prompts: Prompts,
    own: dict[str, Any],
) -> Any:
    section: OnlineSection = job.section
    arguments = training_arguments(
        configuration,
        job,
        len(prompts.trained) * section.num_generations,
        num_generations=section.num_generations,
        max_completion_length=section.max_new_tokens,
        temperature=section.temperature,
        reward_weights=[term.weight for term in section.rewards],
        disable_dropout=job.tuning.dropout == 0,
        **own,
    )
    ids = {prompt.text: prompt.ids for prompt in prompts.trained}
    with quiet():
        trainer = kind(
            model=model,
            reward_funcs=_scores(job, ids),
            args=arguments,
            train_dataset=Dataset.from_list(
                [{"prompt": prompt.text, "target": prompt.target} for prompt in prompts.trained]
            ),
            processing_class=job.tokenizer,
        )
    trainer.prompt_ids = ids
    return trainer


def _scores(job: Job[Any], ids: dict[str, list[int]]) -> list[Score]:
    """A function per term of the rewards, in their order, named after its source."""
    functions = load_rewards(job.section.rewards, job.spec.paths)
    return [
        _model_score(job, ids)
        if term.source == REWARD_MODEL
        else _function_score(term.source, functions[term.source])
        for term in job.section.rewards
    ]


def _function_score(source: str, function: RewardFunction) -> Score:
    def score(
        prompts: list[str], completions: list[str], target: list[str | None], **_: Any
    ) -> list[float]:
        return function(prompts, completions, target).tolist()

    score.__name__ = source.rpartition(":")[2]
    return score


def _model_score(job: Job[Any], ids: dict[str, list[int]]) -> Score:
    """The reward model, loaded beside the policy."""
    model = load_reward_model(
        job.base, job.spec.input("reward"), dtype=job.dtype, quantization=job.quantization
    )

    def score(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = [
            [*ids[prompt], *response]
            for prompt, response in zip(prompts, completion_ids, strict=True)
        ]
        return reward_scores(model, rows, pad=job.tokenizer.pad_token_id, batch_size=32)

    score.__name__ = REWARD_MODEL
    return score
