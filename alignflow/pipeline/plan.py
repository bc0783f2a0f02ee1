"""From a recipe and the artifacts so far to the spec of the next stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignflow.data.lengths import limits_of
from alignflow.evaluation.metric_modules import judging_files, own_file
from alignflow.files import sha256_file
from alignflow.pipeline.resolve import resolve_data_source
from alignflow.recipe import (
    DATA_PARTS,
    DataSource,
    EvaluationSection,
    OnlineSection,
    PPOSection,
    Recipe,
)
from alignflow.recipe.resolve import digest_adapter, resolve_base_model, resolve_function
from alignflow.settings import Settings
from alignflow.stages.artifacts import Artifact
from alignflow.stages.device import resolve_dtype
from alignflow.stages.spec import InputRef, StageSpec

BASE_PARTS = ("base_model.json", "tokenizer")


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
    params, inputs, paths = BUILDERS[stage](recipe, home, artifacts)
    if stage not in ("prepare", "pretrain") and "pretrain" in artifacts:
        inputs["pretrain"] = artifacts["pretrain"].ref(("base_model.json", "model"))
    return StageSpec(
        stage=stage,
        home=str(home),
        params=params,
        seed=recipe.seed,
        inputs=inputs,
        compute=recipe.compute.model_dump(mode="json"),
        paths=paths,
    )


Parts = tuple[dict[str, Any], dict[str, InputRef], dict[str, str]]


def _prepare(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    base = resolve_base_model(recipe.base_model)
    digests, paths = {}, {}
    if base.path:
        paths["base_model"] = base.path
    for source in data_sources(recipe):
        resolved = resolve_data_source(source, home, recipe.seed)
        digests[source.source] = resolved.digest
        if resolved.path:
            paths[source.source] = resolved.path
    params: dict[str, Any] = {
        "data": recipe.data.model_dump(mode="json"),
        "base_model": {**recipe.base_model.model_dump(mode="json"), "digest": base.digest},
        "limits": {part: n for part, n in limits_of(recipe).items() if getattr(recipe.data, part)},
        "sources": digests,
        "max_examples": recipe.evaluation.max_examples,
    }
    held_out = _held_out_prompts(home)
    if held_out is not None:
        params["held_out_prompts"] = sha256_file(held_out)
        paths["held_out_prompts"] = str(held_out)
    if recipe.base_model.chat_template:
        params["chat_template_digest"] = sha256_file(Path(recipe.base_model.chat_template))
    return params, {}, paths


def _held_out_prompts(home: Path) -> Path | None:
    """The ledger's hold-out, from which nothing is trained, whatever source it also stands in."""
    if not (home / "ledger.db").exists() and not Settings().ledger_url:
        return None  # SQLAlchemy stays unloaded
    from alignflow.ledger import held_out_file

    return held_out_file(home)


def data_sources(recipe: Recipe) -> list[DataSource]:
    """Every data source that the recipe's stages read."""
    return [source for part in DATA_PARTS for source in getattr(recipe.data, part)]


def _training(recipe: Recipe, stage: str) -> dict[str, Any]:
    return {"section": getattr(recipe, stage).model_dump(mode="json"), **_tuning(recipe)}


def _tuning(recipe: Recipe) -> dict[str, Any]:
    params = {"tuning": recipe.tuning.model_dump(mode="json"), "dtype": resolve_dtype(recipe)}
    if recipe.tuning.init_adapter:
        params["init_adapter_digest"] = digest_adapter(recipe.tuning.init_adapter)
    return params


def _pretrain(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    assert recipe.pretrain is not None
    parts = [part for part in ("pretrain", "replay", "general") if getattr(recipe.data, part)]
    params = _training(recipe, "pretrain")
    if recipe.pretrain.tuning is not None:
        params["tuning"] = recipe.pretrain.tuning.model_dump(mode="json")
    return params, {"data": artifacts["prepare"].ref((*BASE_PARTS, *parts))}, {}


def _sft(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    data = artifacts["prepare"].ref((*BASE_PARTS, "sft"))
    return _training(recipe, "sft"), {"data": data}, {}


def has_demonstrations(recipe: Recipe, stage: str) -> bool:
    """Whether an alignment stage trains on demonstrations too."""
    return stage == "orpo" and recipe.sft is None and bool(recipe.data.sft)


def _on_preferences(stage: str) -> Callable[[Recipe, Path, Mapping[str, Artifact]], Parts]:
    def build(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
        parts = [
            *BASE_PARTS,
            "preferences",
            *(["sft"] if has_demonstrations(recipe, stage) else []),
        ]
        inputs = {"data": artifacts["prepare"].ref(parts)}
        if "sft" in artifacts:
            inputs["sft"] = artifacts["sft"].ref()
        return _training(recipe, stage), inputs, {}

    return build


def _kto(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    part = "ratings" if recipe.data.ratings else "preferences"
    inputs = {"data": artifacts["prepare"].ref((*BASE_PARTS, part))}
    if "sft" in artifacts:
        inputs["sft"] = artifacts["sft"].ref()
    return _training(recipe, "kto"), inputs, {}


def _on_rewards(stage: str) -> Callable[[Recipe, Path, Mapping[str, Artifact]], Parts]:
    def build(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
        section: PPOSection | OnlineSection = getattr(recipe, stage)
        parts = {"prompts" if recipe.data.prompts else "preferences"}
        if isinstance(section, PPOSection) and section.nll_weight:
            parts.add("preferences")
        inputs = {"data": artifacts["prepare"].ref((*BASE_PARTS, *sorted(parts)))}
        inputs |= {role: artifacts[role].ref() for role in ("sft", "reward") if role in artifacts}
        named = [term.source for term in section.rewards if term.is_function]
        files = {source: resolve_function(source) for source in named}
        params = _training(recipe, stage)
        params["rewarded_by"] = {source: sha256_file(path) for source, path in files.items()}
        databases = [file for term in section.rewards for file in term.files]
        params["rewarded_by"] |= digests_of_files(databases)
        return params, inputs, {source: str(path) for source, path in files.items()}

    return build


def _ppo(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    params, inputs, paths = _on_rewards("ppo")(recipe, home, artifacts)
    if recipe.ppo is not None and recipe.ppo.watch is not None:
        watched = EvaluationSection(metrics=[recipe.ppo.watch.metric])
        params["watched_by"] = digests_of_files(judging_files(watched))
    return params, inputs, paths


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


def _evaluate(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    params = {
        "section": recipe.evaluation.model_dump(mode="json"),
        "judged_by": judged_by(recipe),
        **_tuning(recipe),
    }
    return params, _judged_inputs(recipe, artifacts, ("sft", "aligned", "reward")), {}


def judged_by(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that metrics are computed with: the user's own, and what metrics read."""
    return digests_of_files(judging_files(recipe.evaluation))


def digests_of_files(names: list[str]) -> dict[str, str]:
    """sha256 of those names that are files, or folders of a metric."""
    files = {name: own_file(name) for name in names}
    return {name: sha256_file(path) for name, path in files.items() if path is not None}


def _merge(recipe: Recipe, home: Path, artifacts: Mapping[str, Artifact]) -> Parts:
    assert recipe.merge is not None
    params = {
        "section": recipe.merge.model_dump(mode="json"),
        "evaluation": recipe.evaluation.model_dump(mode="json"),
        "judged_by": judged_by(recipe),
        **_tuning(recipe),
    }
    return params, _judged_inputs(recipe, artifacts, ("sft", "aligned")), {}


BUILDERS: dict[str, Callable[[Recipe, Path, Mapping[str, Artifact]], Parts]] = {
    "prepare": _prepare,
    "pretrain": _pretrain,
    "sft": _sft,
    "reward": _on_preferences("reward"),
    "dpo": _on_preferences("dpo"),
    "ppo": _ppo,
    "orpo": _on_preferences("orpo"),
    "simpo": _on_preferences("simpo"),
    "kto": _kto,
    "rloo": _on_rewards("rloo"),
    "grpo": _on_rewards("grpo"),
    "evaluate": _evaluate,
    "merge": _merge,
}
