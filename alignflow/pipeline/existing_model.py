"""Judging and asking a model that exists already, in this process: a merged one or an adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.checking.model_files import read_config, refusals
from alignflow.data.base import fetch_base
from alignflow.data.template import load_template
from alignflow.errors import ArtifactError, DataError, RecipeError
from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import METHODS, ModelSource, Recipe, TuningSection
from alignflow.recipe.resolve import resolve_base_model
from alignflow.stages.artifacts import Artifact
from alignflow.stages.device import resolve_dtype
from alignflow.stages.environment import NO_TELEMETRY, QUIET_LIBRARIES

ADAPTER_CONFIG, RECORD = "adapter_config.json", "base_model.json"


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def base_of(directory: Path, given: str | None) -> ModelSource:
    """The base model of an adapter: as given, else as its files say.

    Raises:
        RecipeError: Its files do not say.
    """
    if given:
        return ModelSource.model_validate(given)
    record = directory / RECORD
    named = read_config(record).get("source") if record.is_file() else None
    named = named or read_config(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        raise RecipeError(f"{directory} does not name its base model. Name it with --base.")
    return ModelSource.model_validate(named)


def judging_recipe(recipe: Recipe, model: Path, base: str | None) -> Recipe:
    """The recipe cut down to its evaluation, with `model` or its base as the base model."""
    source = (
        base_of(model, base) if is_adapter(model) else ModelSource(source=str(model.absolute()))
    )
    template = recipe.base_model.chat_template if is_adapter(model) else None
    tuning = TuningSection(mode=recipe.tuning.mode, dtype=recipe.tuning.dtype)
    return recipe.model_copy(
        update={
            "base_model": source.model_copy(update={"chat_template": template}),
            "data": recipe.data.model_copy(
                update={"pretrain": [], "replay": [], "sft": [], "preferences": []}
            ),
            "tuning": tuning if is_adapter(model) else TuningSection(dtype=recipe.tuning.dtype),
            **dict.fromkeys(("pretrain", "sft", "reward", *METHODS, "merge")),
            "method": "none",
        }
    )


def judge_model(
    model: Path, recipe: Recipe, home: Path, *, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Figures and their 95 % intervals.

    Args:
        model: Directory of a merged model or an adapter.
        recipe: From `judging_recipe`.
        home: Where the prepared prompts are kept.
        progress: Called with the number of responses so far and in all.

    Raises:
        AlignflowError: The data cannot be prepared, or the model not loaded or scored.
    """
    _quiet()
    prepared = _prepared(recipe, home)
    from alignflow.evaluation.measure import intervals, load_job, measure, responses
    from alignflow.models.loading import (
        load_adapter,
        load_base,
        load_merged,
        load_tokenizer,
        read_base,
    )

    job = load_job(prepared.directory, recipe.evaluation, recipe.seed)
    if is_adapter(model):
        base = read_base(prepared.directory)
        quantization = "nf4" if recipe.tuning.mode == "qlora" else None
        loaded = load_base(base, dtype=resolve_dtype(recipe), quantization=quantization)
        loaded = load_adapter(loaded, model, base).eval()
    else:
        loaded = load_merged(model)
    tokenizer = load_tokenizer(prepared.directory)
    total = responses(job)
    found = measure(loaded, tokenizer, job, lambda done: progress(done, total))
    return {
        "model": str(model.absolute()),
        "recipe": recipe.name,
        "metrics": found.metrics,
        "intervals": intervals(
            found.outcomes, resamples=recipe.evaluation.bootstrap_resamples, seed=recipe.seed
        ),
    }


def _prepared(recipe: Recipe, home: Path) -> Artifact:
    from alignflow.stages.launch import run_stage

    return run_stage(stage_spec(recipe, "prepare", home, {}))


class Question(NamedTuple):
    """What a model is asked."""

    prompt: str
    system: str | None
    max_new_tokens: int
    temperature: float | None
    seed: int


def answer(model: Path, question: Question, base: str | None) -> str:
    """The model's response.

    Raises:
        ArtifactError: There is no model in the directory.
        DataError: Its tokenizer has no chat template, or that rejects the messages.
    """
    _quiet()
    from transformers import AutoTokenizer

    from alignflow.models.generate import generate
    from alignflow.models.loading import BaseModel, load_adapter, load_base, load_merged

    if is_adapter(model):
        source = base_of(model, base)
        resolved = resolve_base_model(source)
        named = {"source": source.source, "digest": resolved.digest}
        directory = fetch_base(named, resolved.path)
        record = BaseModel(path=str(directory), source=source.source, digest=resolved.digest)
        loaded = load_base(record, dtype="float32", quantization=None)
        loaded = load_adapter(loaded, model, record).eval()
    else:
        directory, loaded = model, load_merged(model)
    home = model if (model / "tokenizer_config.json").is_file() else directory
    tokenizer = AutoTokenizer.from_pretrained(str(home), trust_remote_code=False)
    ids = tokenizer.encode(_rendered(home, question), add_special_tokens=False)
    (response,) = generate(
        loaded, tokenizer, [list(ids)], max_new_tokens=question.max_new_tokens, batch_size=1,
        temperature=question.temperature, seed=question.seed,
    )  # fmt: skip
    return response


def _rendered(directory: Path, question: Question) -> str:
    from alignflow.data.template import TemplateRejects

    template = load_template(directory)
    if template is None:
        return question.prompt
    messages = [{"role": "user", "content": question.prompt}]
    if question.system:
        messages.insert(0, {"role": "system", "content": question.system})
    try:
        return template.render(messages, add_generation_prompt=True)
    except TemplateRejects as error:
        raise DataError(f"{directory}: its chat template rejects the messages: {error}.") from error


def require_model(directory: Path) -> None:
    """Refuses what is no model directory, or one that could run code.

    Raises:
        ArtifactError: There is neither a model nor an adapter.
        RecipeError: It holds pickles, links out of it, or names code.
    """
    from alignflow.checking.findings import raise_errors

    if not (directory / "config.json").is_file() and not is_adapter(directory):
        raise ArtifactError(
            f"{directory} holds no model (neither config.json nor {ADAPTER_CONFIG}). Give the "
            "directory of a merged model or of an adapter; `alignflow show` names both."
        )
    raise_errors(str(directory), refusals(directory, ""))


def _quiet() -> None:
    """Before any training library is imported."""
    for name, value in {**NO_TELEMETRY, **QUIET_LIBRARIES}.items():
        os.environ.setdefault(name, value)
