"""Stage `evaluate`: base, SFT and aligned model on the same prompts, one model in memory at a time.

    model -> responses -> metrics by group, perplexity of general text -> intervals
    aligned against SFT -> KL on sampled responses, win rate under the reward model

An unchanged model is not evaluated again. `output/responses.parquet` holds every response with its
verdicts, so that two models can be compared prompt by prompt.
"""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from alignflow.errors import EvaluationError
from alignflow.evaluation.about import leading_figures
from alignflow.evaluation.compare import kl_to_sft, win_rate
from alignflow.evaluation.kept import evaluation_digest, kept_or
from alignflow.evaluation.measure import (
    Job,
    Measured,
    intervals,
    load_job,
    measure,
    responses,
    united,
)
from alignflow.evaluation.scores import prompt_name, scores_of, write_scores
from alignflow.models import (
    BaseModel,
    base_of,
    load_policy,
    load_reward_model,
    load_tokenizer,
    read_base,
)
from alignflow.recipe import EvaluationSection
from alignflow.stages import (
    RESPONSES_FILE,
    SCORES_FILE,
    EvaluateParams,
    EventWriter,
    ModelParams,
    RowAccount,
    StageResult,
    StageSpec,
)

SAMPLES = 12


class Bench(NamedTuple):
    """What the models of one stage are judged with."""

    spec: StageSpec
    base: BaseModel
    """Of the adapters: what continued pre-training made, where there was one."""
    original: BaseModel
    """What the recipe started from: role `base`."""
    tokenizer: Any
    job: Job
    dtype: str
    quantization: str | None

    def model(self, role: str) -> str:
        """Digest of the model in a role."""
        return self.original.digest if role == "base" else self.spec.inputs[role].digest

    def digest(self, *roles: str) -> str:
        """Names the evaluation of the models in `roles`."""
        data = self.spec.inputs["data"].digest
        models = {str(place): self.model(role) for place, role in enumerate(roles)}
        options = {"dtype": self.dtype, "quantization": self.quantization}
        return evaluation_digest(models, data, self.job.section, seed=self.spec.seed, **options)

    def policy(self, role: str) -> Any:
        """The model in a role, loaded.

        In float32 an adapter is folded into the weights: the same answers to rounding, a fifth
        faster. Lower precision or packed weights would lose some of it, so there it stays apart.
        """
        base, directory = (
            (self.original, None) if role == "base" else (self.base, self.spec.input(role))
        )
        model = load_policy(base, directory, dtype=self.dtype, quantization=self.quantization)
        foldable = self.dtype == "float32" and self.quantization is None
        folds = foldable and hasattr(model, "merge_and_unload")
        return model.merge_and_unload() if folds else model

    def reward_model(self) -> Any:
        options: Any = {"dtype": self.dtype, "quantization": self.quantization}
        return load_reward_model(self.base, self.spec.input("reward"), **options)


def load_bench(spec: StageSpec, params: ModelParams, section: EvaluationSection) -> Bench:
    prepared, kinds = spec.input("data"), (params.dtype, params.quantization)
    tokenizer, job = load_tokenizer(prepared), load_job(prepared, section, spec.seed)
    original = read_base(prepared, spec.compute.attention)
    return Bench(spec, base_of(spec), original, tokenizer, job, *kinds)


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        EvaluationError: A model cannot be scored. There is no zero in place of a score.
    """
    params = EvaluateParams.of(spec)
    section, bench = params.section, load_bench(spec, params, params.section)
    roles = [role for role in section.models if role == "base" or role in spec.inputs]
    if not roles:
        raise EvaluationError(
            f"evaluation.models is {section.models}, but this recipe makes none of them."
        )
    count, job = len(roles), bench.job
    measured = {
        role: _measure(bench, role, place, count, events) for place, role in enumerate(roles)
    }
    if {"sft", "aligned"} <= set(roles):
        measured["aligned"] = _compared(bench, measured, events)
    write_responses(work / "output" / RESPONSES_FILE, job, measured)
    scores = {role: scores_of(job, model, bench.model(role)) for role, model in measured.items()}
    write_scores(work / "output" / SCORES_FILE, scores)
    shown = figures(measured, section.bootstrap_resamples, spec.seed)
    return StageResult(
        metrics=flat(measured),
        rows=RowAccount(read=len(job.prompts), held_out=len(job.prompts)),
        params={"dtype": bench.dtype, "quantization": bench.quantization or "none"},
        details={**shown, "samples": samples(job, measured)},
    )


def _measure(bench: Bench, role: str, place: int, roles: int, events: EventWriter) -> Measured:
    each = max(responses(bench.job), 1)

    def progress(done: int) -> None:
        events.progress(place * each + done, roles * each, "responses")

    def make() -> Measured:
        model = bench.policy(role)
        try:
            return measure(model, bench.tokenizer, bench.job, progress)
        finally:
            del model
            free_memory()

    measured, kept = kept_or(Path(bench.spec.home), bench.digest(role), make)
    if kept:
        events.message(f"{role}: evaluated before, with the same result by construction")
    progress(each)
    events.metrics(place, {f"{role}/{name}": value for name, value in measured.metrics.items()})
    return measured


def _compared(bench: Bench, measured: dict[str, Measured], events: EventWriter) -> Measured:
    """The aligned model's figures with those that need the SFT model's too."""
    sft, aligned = measured["sft"], measured["aligned"]
    if not bench.job.prompts or bench.digest("sft") == bench.digest("aligned"):
        return aligned
    home, parts = Path(bench.spec.home), [aligned]
    if aligned.sampled:
        events.message("aligned: KL to the SFT model")
        digest = bench.digest("aligned", "sft")
        parts += kept_or(home, digest, lambda: kl_to_sft(bench, aligned))[:1]
    if "reward" in bench.spec.inputs:
        events.message("aligned: win rate against the SFT model under the reward model")
        digest = bench.digest("aligned", "sft", "reward")
        parts += kept_or(home, digest, lambda: win_rate(bench, aligned, sft))[:1]
    return united(parts)


def free_memory() -> None:
    """Gives a model's memory back before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def flat(measured: dict[str, Measured]) -> dict[str, float | None]:
    """`{"sft/accuracy": ...}`, what tells most first: the last model, and its leading figures."""
    leading = {name: place for place, name in enumerate(leading_figures())}
    return {
        f"{role}/{name}": model.metrics[name]
        for role, model in reversed(measured.items())
        for name in sorted(model.metrics, key=lambda name: leading.get(name, len(leading)))
    }


def figures(measured: dict[str, Measured], resamples: int, seed: int) -> dict[str, Any]:
    """What the report shows: figures and intervals by model."""
    return {
        "evaluation": {role: model.metrics for role, model in measured.items()},
        "intervals": {
            role: intervals(model.outcomes, resamples=resamples, seed=seed)
            for role, model in measured.items()
        },
    }


def samples(job: Job, measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """Greedy answers of every model to prompts at even distances: not chosen by their looks.

    `scores` are the first metric's of each model's answer, where it gives one by prompt.
    """
    count = min(SAMPLES, len(job.prompts))
    places = [round(number * (len(job.prompts) - 1) / max(count - 1, 1)) for number in range(count)]
    return [
        {
            "question": job.prompts[place].question,
            "target": job.prompts[place].target,
            **{role: model.greedy[place].text for role, model in measured.items()},
            "scores": {
                role: score
                for role, model in measured.items()
                if math.isfinite(score := _greedy_scores(model).get(place, math.nan))
            },
        }
        for place in places
    ]


def _greedy_scores(model: Measured) -> dict[int, float]:
    return dict(enumerate(model.verdicts.get("greedy_correct", [])))


def write_responses(path: Path, job: Job, measured: dict[str, Measured]) -> None:
    """Every response of every model, with its verdicts."""
    rows = [
        {
            "model": role,
            "prompt_index": place,
            "prompt_name": prompt_name(prompt.ids),
            "group": prompt.group,
            "question": prompt.question,
            "conversation": prompt.conversation,
            "target": prompt.target,
            "greedy": model.greedy[place].text,
            "sampled": model.sampled[place].text if model.sampled else None,
            **{name: values[place] for name, values in model.verdicts.items()},
        }
        for role, model in measured.items()
        for place, prompt in enumerate(job.prompts)
    ]
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
