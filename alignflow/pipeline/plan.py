"""From a recipe and the artifacts so far to the spec of the next stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.data.lengths import limits_of
from alignflow.evaluation import judging_files, own_file
from alignflow.files import sha256_file
from alignflow.pipeline.resolve import resolve_data_source
from alignflow.recipe import (
    DATA_PARTS,
    TRAINING_STAGES,
    DataSource,
    EvaluationSection,
    PPOSection,
    PretrainSection,
    Recipe,
    RewardedSection,
)
from alignflow.recipe.resolve import digest_adapter, resolve_base_model, resolve_function
from alignflow.settings import Settings
from alignflow.stages.artifacts import Artifact
from alignflow.stages.device import resolve_dtype
from alignflow.stages.params import (
    EvaluateParams,
    MergeParams,
    PrepareParams,
    ResolvedModel,
    StageParams,
    TrainingParams,
)
from alignflow.stages.spec import InputRef, StageSpec

BASE_PARTS = ("base_model.json", "tokenizer")


class Work(NamedTuple):
    """What a stage is told beside what every stage is told."""

    params: StageParams
    inputs: Mapping[str, InputRef]
    paths: Mapping[str, str]
    """Where the files are whose digests stand in `params`."""


def stage_spec(
    recipe: Recipe, stage: str, home: Path, artifacts: Mapping[str, Artifact]
) -> StageSpec:
    """What `stage` has to do, given the artifacts of the stages before it.

    Args:
        recipe: The whole recipe; only what concerns the stage enters its key.
        stage: A name of `recipe.stages`.
        home: Absolute home.
        artifacts: Finished stages by name.

    Raises:
        RecipeError: The base model is not there.
        DataError: A data source is not there.
    """
    work = _work_of(recipe, stage, home, artifacts)
    inputs = dict(work.inputs)
    if stage not in ("prepare", "pretrain") and "pretrain" in artifacts:
        inputs["pretrain"] = artifacts["pretrain"].ref(("base_model.json", "model"))
    return StageSpec(
        stage=stage,
        home=str(home),
        params=work.params.as_json(),
        seed=recipe.seed,
        inputs=inputs,
        compute=recipe.compute,
        paths=dict(work.paths),
    )


def _work_of(recipe: Recipe, stage: str, home: Path, artifacts: Mapping[str, Artifact]) -> Work:
    if stage == "prepare":
        return _prepare(recipe, home)
    if stage == "evaluate":
        return _evaluate(recipe, artifacts)
    if stage == "merge":
        return _merge(recipe, artifacts)
    return _train(recipe, stage, artifacts)


def _prepare(recipe: Recipe, home: Path) -> Work:
    base = resolve_base_model(recipe.base_model)
    paths = {"base_model": base.path} if base.path else {}
    digests = {}
    for source in data_sources(recipe):
        resolved = resolve_data_source(source, home, recipe.seed)
        digests[source.source] = resolved.digest
        if resolved.path:
            paths[source.source] = resolved.path
    optional: dict[str, Any] = {}
    held_out = _held_out_prompts(home)
    if held_out is not None:
        optional["held_out_prompts"] = sha256_file(held_out)
        paths["held_out_prompts"] = str(held_out)
    if recipe.base_model.chat_template:
        optional["chat_template_digest"] = sha256_file(Path(recipe.base_model.chat_template))
    params = PrepareParams(
        data=recipe.data,
        base_model=ResolvedModel(**recipe.base_model.model_dump(), digest=base.digest),
        limits={part: n for part, n in limits_of(recipe).items() if getattr(recipe.data, part)},
        sources=digests,
        max_examples=recipe.evaluation.max_examples,
        **optional,
    )
    return Work(params, {}, paths)


def _held_out_prompts(home: Path) -> Path | None:
    """The ledger's hold-out, from which nothing is trained, whatever source it also stands in."""
    if not (home / "ledger.db").exists() and not Settings().ledger_url:
        return None  # SQLAlchemy stays unloaded
    from alignflow.ledger import held_out_file

    return held_out_file(home)


def data_sources(recipe: Recipe) -> list[DataSource]:
    """Every data source that the recipe's stages read."""
    return [source for part in DATA_PARTS for source in getattr(recipe.data, part)]


def _tuning(recipe: Recipe) -> dict[str, Any]:
    """Fields of `ModelParams`."""
    fields: dict[str, Any] = {"tuning": recipe.tuning, "dtype": resolve_dtype(recipe)}
    if recipe.tuning.init_adapter:
        fields["init_adapter_digest"] = digest_adapter(recipe.tuning.init_adapter)
    return fields


def _train(recipe: Recipe, stage: str, artifacts: Mapping[str, Artifact]) -> Work:
    section = recipe.section_of(stage)
    assert section is not None and stage in TRAINING_STAGES
    fields = _tuning(recipe)
    if isinstance(section, PretrainSection) and section.tuning is not None:
        fields["tuning"] = section.tuning
    before = () if stage in ("pretrain", "sft") else ("sft",)
    paths: dict[str, str] = {}
    if isinstance(section, RewardedSection):
        before = (*before, "reward")
        named = [term.source for term in section.rewards if term.is_function]
        paths = {source: str(resolve_function(source)) for source in named}
        databases = [file for term in section.rewards for file in term.files]
        fields["rewarded_by"] = {
            **{name: sha256_file(Path(path)) for name, path in paths.items()},
            **digests_of_files(databases),
        }
    if isinstance(section, PPOSection) and section.watch is not None:
        watched = EvaluationSection(metrics=[section.watch.metric])
        fields["watched_by"] = digests_of_files(judging_files(watched))
    for field, model in section.models().items():
        resolved = resolve_base_model(model, f"{stage}.{field}")
        record = ResolvedModel(**model.model_dump(), digest=resolved.digest)
        fields.setdefault("models", {})[field] = record
        if resolved.path:
            paths[field] = resolved.path
    return Work(
        TrainingParams(section=section.model_dump(mode="json"), **fields),
        {
            "data": artifacts["prepare"].ref((*BASE_PARTS, *recipe.parts_read(stage))),
            **{role: artifacts[role].ref() for role in before if role in artifacts},
        },
        paths,
    )


def aligned(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> Artifact | None:
    """The artifact of the last stage that trained the policy."""
    return artifacts.get(recipe.method) or artifacts.get("sft")


def _judged_inputs(
    recipe: Recipe, artifacts: Mapping[str, Artifact], roles: tuple[str, ...]
) -> dict[str, InputRef]:
    parts = [part for part, rows in (("evaluation", recipe.data.evaluation), ("general", recipe.data.general)) if rows]  # fmt: skip
    found = {
        "sft": artifacts.get("sft"),
        "aligned": aligned(recipe, artifacts),
        "reward": artifacts.get("reward"),
    }
    return {
        "data": artifacts["prepare"].ref((*BASE_PARTS, *parts)),
        **{role: artifact.ref() for role in roles if (artifact := found[role])},
    }


def _evaluate(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> Work:
    params = EvaluateParams(
        section=recipe.evaluation, judged_by=judged_by(recipe), **_tuning(recipe)
    )
    return Work(params, _judged_inputs(recipe, artifacts, ("sft", "aligned", "reward")), {})


def judged_by(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that metrics are computed with: the user's own, and what metrics read."""
    return digests_of_files(judging_files(recipe.evaluation))


def digests_of_files(names: list[str]) -> dict[str, str]:
    """sha256 of those names that are files, or folders of a metric."""
    files = {name: own_file(name) for name in names}
    return {name: sha256_file(path) for name, path in files.items() if path is not None}


def _merge(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> Work:
    assert recipe.merge is not None
    params = MergeParams(
        section=recipe.merge,
        evaluation=recipe.evaluation,
        judged_by=judged_by(recipe),
        **_tuning(recipe),
    )
    return Work(params, _judged_inputs(recipe, artifacts, ("sft", "aligned")), {})
