"""From a recipe and the artifacts so far to the spec of the next stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.data import limits_of
from alignflow.errors import RecipeError
from alignflow.evaluation import judging_files, own_file
from alignflow.files import digest_json, sha256_file
from alignflow.pipeline.source_digests import digests_of
from alignflow.recipe import (
    DATA_PARTS,
    TRAINING_STAGES,
    DataSource,
    EvaluationSection,
    PPOSection,
    PretrainSection,
    Recipe,
    Resolved,
    RewardedSection,
    TuningSection,
    digest_adapter,
    hub_commit,
    is_builtin,
    is_hub_id,
    is_ledger,
    matching_files,
    resolve_base_model,
    resolve_function,
)
from alignflow.settings import has_ledger
from alignflow.stages import (
    Artifact,
    EvaluateParams,
    InputRef,
    MergeParams,
    PrepareParams,
    ResolvedModel,
    StageParams,
    StageSpec,
    TrainingParams,
    resolve_dtype,
)

BASE_PARTS = ("base_model.json", "tokenizer")


Work = tuple[StageParams, dict[str, InputRef], dict[str, str]]
"""What a stage is told beside what every stage is told: parameters, inputs, and where the files are
whose digests stand in the parameters."""


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
    if stage == "prepare":
        params, inputs, paths = _prepare(recipe, home)
    elif stage in ("evaluate", "merge"):
        params, inputs, paths = _judge(recipe, stage, artifacts)
    else:
        params, inputs, paths = _train(recipe, stage, artifacts)
    if stage not in ("prepare", "pretrain") and "pretrain" in artifacts:
        inputs["pretrain"] = artifacts["pretrain"].ref(("base_model.json", "model"))
    return StageSpec(
        stage=stage,
        home=str(home),
        params=params.as_json(),
        seed=recipe.seed,
        inputs=inputs,
        compute=recipe.compute,
        paths=paths,
    )


def _prepare(recipe: Recipe, home: Path) -> Work:
    base = resolve_base_model(recipe.base_model)
    paths = {"base_model": base.path} if base.path else {}
    digests = {}
    for source in [source for part in DATA_PARTS for source in getattr(recipe.data, part)]:
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
        versions={"never_trained_on": 2, "target_of_calls": 2, "arrow_shards": 1},
        **optional,
    )
    return params, {}, paths


def resolve_data_source(source: DataSource, home: Path, seed: int) -> Resolved:
    """Digest of a data source's content; a Hub dataset's is its commit.

    Raises:
        RecipeError: No builtin data set has that name.
        DataError: No file matches, or the ledger has no such set or snapshot.
    """
    if is_builtin(source.source):
        from alignflow.builtin import rows

        try:
            content = rows(source.source.removeprefix("builtin:"), seed)
        except KeyError as error:
            raise RecipeError(f"data: {error.args[0]}.") from error
        return Resolved(digest_json(content), None)
    if is_ledger(source.source):
        from alignflow.ledger import training_rows

        name, _, snapshot = source.source.removeprefix("ledger:").partition("@")
        path = training_rows(home, name, snapshot or None)
        return Resolved(sha256_file(path), str(path))
    if is_hub_id(source.source):
        return Resolved(hub_commit(source.source, source.revision, "dataset"), None)
    files = matching_files(source.source, source.split)
    return Resolved(digest_json(digests_of(files, home)), None)


def _held_out_prompts(home: Path) -> Path | None:
    """The ledger's hold-out, from which nothing is trained, whatever source it also stands in."""
    if not has_ledger(home):
        return None  # SQLAlchemy stays unloaded
    from alignflow.ledger import held_out_file

    return held_out_file(home)


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
    fields |= _versions(stage, fields["tuning"])
    params = TrainingParams(section=section.model_dump(mode="json"), **fields)
    data = artifacts["prepare"].ref((*BASE_PARTS, *recipe.parts_read(stage)))
    models = {role: artifacts[role].ref() for role in before if role in artifacts}
    return params, {"data": data, **models}, paths


def _versions(stage: str, tuning: TuningSection) -> dict[str, Any]:
    """The field `versions` of `TrainingParams`; nothing where all are the first."""
    known = {stage: TRAINING_STAGES[stage].version, "qlora": 2 if tuning.mode == "qlora" else 1}
    raised = {name: version for name, version in known.items() if version > 1}
    return {"versions": raised} if raised else {}


def judged_by(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that metrics are computed with: the user's own, and what metrics read."""
    return digests_of_files(judging_files(recipe.evaluation))


def digests_of_files(names: list[str]) -> dict[str, str]:
    """sha256 of those names that are files, or folders of a metric."""
    files = {name: own_file(name) for name in names}
    return {name: sha256_file(path) for name, path in files.items() if path is not None}


def _judge(recipe: Recipe, stage: str, artifacts: Mapping[str, Artifact]) -> Work:
    """Of `evaluate`, and of `merge`, which judges what it made."""
    aligned = artifacts.get(recipe.method) or artifacts.get("sft")
    models = {"sft": artifacts.get("sft"), "aligned": aligned}
    fields: dict[str, Any] = {"judged_by": judged_by(recipe), **_tuning(recipe)}
    fields["versions"] = {"intervals": 2, "samples": 2}
    if stage == "merge":
        assert recipe.merge is not None
        params = MergeParams(section=recipe.merge, evaluation=recipe.evaluation, **fields)
    else:
        params = EvaluateParams(section=recipe.evaluation, **fields)
        models["reward"] = artifacts.get("reward")
    parts = [part for part in ("evaluation", "general") if getattr(recipe.data, part)]
    inputs = {role: artifact.ref() for role, artifact in models.items() if artifact}
    return params, {"data": artifacts["prepare"].ref((*BASE_PARTS, *parts)), **inputs}, {}
