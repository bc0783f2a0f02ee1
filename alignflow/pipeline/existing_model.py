"""Judging, asking and merging models that exist already, in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alignflow.checking import preflight, read_config
from alignflow.data import (
    ChatTemplate,
    Message,
    TemplateRejects,
    fetch_base,
    special_of,
    spoken,
)
from alignflow.errors import DataError, RecipeError
from alignflow.pipeline.model_names import ADAPTER_CONFIG, is_adapter, model_named
from alignflow.pipeline.plan import stage_spec
from alignflow.recipe import (
    METHODS,
    ModelSource,
    Recipe,
    TuningSection,
    local_directory,
    resolve_base_model,
)
from alignflow.retrieval import Grounding, with_passages
from alignflow.settings import resolve_home
from alignflow.stages import (
    NO_TELEMETRY,
    QUIET_LIBRARIES,
    SLEEPING_THREADS,
    NamedModel,
    Record,
    resolve_dtype,
    run_stage,
)

if TYPE_CHECKING:
    from alignflow.merging import Certificate
    from alignflow.models import BaseModel

Prompt = TypeVar("Prompt", str, list[str])
TEMPLATE_FIELDS = {"chat_template", "template_arguments", "template_date"}
RECORD = "base_model.json"


def base_of(directory: Path, given: str | None) -> ModelSource:
    """The base model of an adapter: as given, else as its files say.

    Raises:
        RecipeError: Its files do not say, or it is not where they say.
    """
    if given:
        return ModelSource.model_validate(given)
    record = directory / RECORD
    named = read_config(record).get("source") if record.is_file() else None
    named = named or read_config(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        raise RecipeError(f"{directory} does not name its base model. Name it with --base.")
    source = ModelSource.model_validate(named)
    try:
        local_directory(source)
    except RecipeError as error:
        raise _base_is_absent(directory, source, error) from error
    return source


def _base_is_absent(directory: Path, base: ModelSource, error: RecipeError) -> RecipeError:
    return RecipeError(
        f"{directory} names the base model {base.source}, which cannot be had. Name it with --base. "
        f"({error.message})"
    )


def judging_recipe(recipe: Recipe, model: Path, base: str | None) -> Recipe:
    """The recipe cut down to its evaluation, with `model` or its base as the base model."""
    source = (
        base_of(model, base) if is_adapter(model) else ModelSource(source=str(model.absolute()))
    )
    named = recipe.base_model.model_dump(include=TEMPLATE_FIELDS) if is_adapter(model) else {}
    tuning = TuningSection(mode=recipe.tuning.mode, dtype=recipe.tuning.dtype)
    return recipe.model_copy(
        update={
            "base_model": source.model_copy(update=named),
            "data": recipe.data.model_copy(
                update={"pretrain": [], "replay": [], "sft": [], "preferences": []}
            ),
            "tuning": tuning if is_adapter(model) else TuningSection(dtype=recipe.tuning.dtype),
            **dict.fromkeys(("pretrain", "sft", "reward", *METHODS, "merge")),
            "method": "none",
        }
    )


class Evaluation(Record):
    """What a model can do, on the evaluation data and metrics of a recipe."""

    model: str
    """Its absolute directory."""
    recipe: str
    metrics: dict[str, float | None]
    """Rates are fractions from 0 to 1."""
    intervals: dict[str, tuple[float, float]]
    """95 % intervals over prompts: Wilson's, or by bootstrap."""


def evaluate(
    model: Path | str,
    recipe: Recipe,
    *,
    base: str | None = None,
    home: Path | str | None = None,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judges a model on the evaluation data and metrics of a recipe.

    Args:
        model: A merged model or an adapter: its directory, a run (`last`), or
            `models:/NAME@champion`.
        recipe: Says what to judge on, and how.
        base: Base model of an adapter; None is the one its files name.
        home: Where the prepared prompts are kept; None is ALIGNFLOW_HOME or `.alignflow`.
        name: Names the recipe in messages.
        progress: Called with the number of responses so far and in all.

    Raises:
        AlignflowError: The data cannot be prepared, or the model not loaded or scored.
    """
    place = resolve_home(home)
    directory = model_named(model, place)
    recipe = judging_recipe(recipe, directory, base)
    preflight(recipe, name or recipe.name, place)
    _quiet()
    prepared = run_stage(stage_spec(recipe, "prepare", place, {}))
    from alignflow.evaluation import intervals, load_job, measure, responses
    from alignflow.models import load_tokenizer, read_base

    job = load_job(prepared.directory, recipe.evaluation, recipe.seed)
    record = read_base(prepared.directory) if is_adapter(directory) else None
    quantization = "nf4" if recipe.tuning.mode == "qlora" else None
    loaded = _loaded(directory, record, resolve_dtype(recipe), quantization)
    tokenizer = load_tokenizer(prepared.directory)
    total, told = responses(job), progress or (lambda *_: None)
    measured = measure(loaded, tokenizer, job, lambda done: told(done, total))
    resamples = recipe.evaluation.bootstrap_resamples
    spread = intervals(measured.outcomes, resamples=resamples, seed=recipe.seed)
    return Evaluation(
        model=str(directory.absolute()),
        recipe=recipe.name,
        metrics=dict(measured.metrics),
        intervals={name: (low, high) for name, (low, high) in spread.items()},
    )


def _loaded(directory: Path, base: BaseModel | None, dtype: str, quantization: str | None) -> Any:
    """The adapter on its base, ready to answer; the merged model where no base is given."""
    from alignflow.models import load_adapter, load_base, load_merged

    if base is None:
        return load_merged(directory)
    loaded = load_base(base, dtype=dtype, quantization=quantization)
    return load_adapter(loaded, directory, base).eval()


def generate(
    model: Path | str,
    prompt: Prompt,
    *,
    system: str | None = None,
    base: str | None = None,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    seed: int = 0,
    index: Path | str | None = None,
    home: Path | str | None = None,
) -> Prompt:
    """A model's response to a user message, or its responses to several.

    Args:
        model: A merged model or an adapter: its directory, a run (`last`), or
            `models:/NAME@champion`.
        prompt: A user message, or several that are answered on their own.
        system: A system message before each.
        base: Base model of an adapter; None is the one its files name.
        max_new_tokens: Longest response.
        temperature: Sample at this temperature; None is greedy.
        seed: Of the sampling.
        index: Folder of an index, whose passages stand before the prompt, or of demonstrations.
        home: Where runs and the local registry are; None is ALIGNFLOW_HOME or `.alignflow`.

    Raises:
        ArtifactError: There is no such model.
        DataError: Its chat template rejects the messages.
    """
    directory = model_named(model, resolve_home(home))
    _quiet()
    from alignflow.models import BaseModel, answers, respond

    place, record = directory, None
    if is_adapter(directory):
        source = base_of(directory, base)
        try:
            resolved = resolve_base_model(source)
            named = NamedModel(source=source.source, digest=resolved.digest)
            place = fetch_base(named, resolved.path, resolve_home(home))
        except RecipeError as error:
            if base is not None:
                raise
            raise _base_is_absent(directory, source, error) from error
        record = BaseModel(path=str(place), source=source.source, digest=resolved.digest)
    loaded = _loaded(directory, record, "float32", None)
    if (directory / "tokenizer_config.json").is_file():
        place = directory
    said = spoken(place, ModelSource(source=str(place)), str(place))
    prompts = [prompt] if isinstance(prompt, str) else prompt
    before = Grounding.read(index) if index is not None else None
    asked = [_grounded(text, before, special_of(said.tokenizer)) for text in prompts]
    texts = [_rendered(place, said.template, turns, system) for turns in asked]
    ids = [list(said.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    sampling = {"temperature": temperature, "seed": seed}
    responses = respond(loaded, said.tokenizer, ids, max_new_tokens=max_new_tokens, **sampling)
    replies: Any = answers(said.tokenizer, [r.ids for r in responses])
    return replies[0] if isinstance(prompt, str) else replies


def merge(
    base: Path | str,
    adapter: Path | str,
    out: Path | str,
    *,
    weight: float = 1.0,
    combine: Mapping[str, float] | None = None,
    then: Sequence[Path | str] = (),
    qlora_base: Literal["dequantized", "original"] | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    verify: bool = True,
) -> Certificate:
    """Merges an adapter into its base in bounded memory, and certifies the result.

    Args:
        base: Directory or Hub id of the base model, or gguf:PATH.
        adapter: Directory or Hub id of the adapter.
        out: Directory of the merged model.
        weight: Scales the adapter's delta.
        combine: Further adapters of the same base and their weights, whose deltas are added.
        then: Adapters merged after it, each trained on the preceding result.
        qlora_base: For an adapter trained on NF4: the weights it is merged into; None is as its
            stage says.
        dtype: Type of the merged weights; `auto` keeps the base's.
        verify: Compare logits of merged and base plus adapter.

    Raises:
        CertificateError: The result differs from base plus adapter.
        RecipeError: The arguments contradict each other.
    """
    _quiet()
    from alignflow.merging import demand_passed, merge_request
    from alignflow.merging import merge as write_merged

    asked = merge_request(
        str(base),
        [(str(adapter), weight), *(combine or {}).items()],
        [str(path) for path in then],
        qlora_base=qlora_base,
        dtype=dtype,
        verify=verify,
    )
    certificate = write_merged(asked.base, asked.steps, Path(out), asked.options)
    demand_passed(certificate, Path(out))
    return certificate


def _grounded(prompt: str, before: Grounding | None, special: list[str]) -> list[Message]:
    """The turns of a prompt, after demonstrations and with passages where there are some."""
    if before is None:
        return [{"role": "user", "content": prompt}]
    instruction = before.retrieval.instruction if before.retrieval else ""
    texts = [passage.text for passage in before.passages(prompt)]
    content = with_passages(prompt, texts, instruction, special)
    return [*before.shots, {"role": "user", "content": content}]


def _rendered(
    directory: Path, template: ChatTemplate | None, turns: list[Message], system: str | None
) -> str:
    if template is None:
        return "\n\n".join(turn["content"] for turn in turns)
    messages = list(turns)
    if system:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return template.render(messages, add_generation_prompt=True)
    except TemplateRejects as error:
        raise DataError(f"{directory}: its chat template rejects the messages: {error}.") from error


def _quiet() -> None:
    """Before any training library is imported."""
    for name, value in {**NO_TELEMETRY, **QUIET_LIBRARIES, **SLEEPING_THREADS}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it could download
