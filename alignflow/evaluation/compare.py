"""Figures of the aligned model that need the SFT model too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from alignflow.data import main_places
from alignflow.evaluation.measure import DecodedResponse, Job, Measured, Outcome, prompt_clusters
from alignflow.evaluation.metric_modules import MetricModule, compute_metric, load_module
from alignflow.models import response_logps, reward_scores


class Models(Protocol):
    """Loads models by role."""

    @property
    def job(self) -> Job: ...

    @property
    def tokenizer(self) -> Any: ...

    def policy(self, role: str) -> Any: ...

    def reward_model(self) -> Any: ...


def kl_to_sft(models: Models, aligned: Measured) -> Measured:
    """KL(aligned || SFT) in nats per response, estimated on the aligned model's samples.

    Both distributions are taken at the temperature of the samples.
    """
    logps = {role: _logps(models, role, aligned.sampled) for role in ("aligned", "sft")}
    return _compared(models.job, "kl", "kl_to_sft", logps["aligned"], logps["sft"])


def win_rate(models: Models, aligned: Measured, sft: Measured) -> Measured:
    """How often the reward model scores the aligned model's response above the SFT model's.

    On sampled responses where there are any. Equal scores are half a win.
    """
    model = models.reward_model()
    places = main_places([prompt.group for prompt in models.job.prompts])

    def scores(responses: Sequence[DecodedResponse]) -> list[float]:
        rows = [[*models.job.prompts[place].ids, *responses[place].ids] for place in places]
        pad = models.tokenizer.pad_token_id
        return reward_scores(model, rows, pad=pad, batch_size=models.job.section.batch_size)

    ours, theirs = scores(aligned.sampled or aligned.greedy), scores(sft.sampled or sft.greedy)
    return _compared(models.job, "win_rate", "win_rate", ours, theirs)


def _logps(models: Models, role: str, responses: Sequence[DecodedResponse]) -> list[float]:
    model = models.policy(role)
    job = models.job
    places = main_places([prompt.group for prompt in job.prompts])
    return response_logps(
        model,
        [job.prompts[place].ids for place in places],
        [responses[place].ids for place in places],
        batch_size=job.section.batch_size,
        temperature=job.section.temperature,
    )


def _compared(job: Job, metric: str, name: str, ours: list[float], theirs: list[float]) -> Measured:
    compared = compute_metric(MetricModule(metric, load_module(metric), {}), ours, theirs)
    clusters = prompt_clusters(job.prompts)
    places = main_places([prompt.group for prompt in job.prompts])
    outcome = Outcome(
        values=compared.per_prompt[metric], clusters=[clusters[place] for place in places]
    )
    return Measured(metrics={name: compared.figure}, outcomes={name: outcome})
