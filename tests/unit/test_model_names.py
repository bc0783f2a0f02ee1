"""A model by every name that a person knows it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import ArtifactError, RecipeError
from alignflow.pipeline.model_names import model_named, run_named
from alignflow.pipeline.report import build_report, write_report
from alignflow.recipe import Recipe
from alignflow.tracking import registry_client, tracking_uri


def model_in(directory: Path, file: str = "config.json") -> Path:
    directory.mkdir(parents=True)
    (directory / file).write_text("{}")
    return directory


RECIPE = Recipe.model_validate(
    {"name": "tiny", "base_model": "b", "data": {"sft": "s"}, "sft": {}, "merge": {}}
)


def reported(home: Path, run_id: str, status: str = "completed", **made: Any) -> Path:
    return write_report(home, build_report(RECIPE, run_id, status, 1.0, [], {}) | made)


def test_a_directory_is_a_model_an_artifact_or_a_run(tmp_path: Path) -> None:
    merged = model_in(tmp_path / "artifacts" / "merge" / "k" / "model")
    adapter = model_in(tmp_path / "artifacts" / "sft" / "k" / "adapter", "adapter_config.json")
    assert model_named(merged, tmp_path) == merged
    assert model_named(merged.parent, tmp_path) == merged
    assert model_named(adapter.parent, tmp_path) == adapter
    run = reported(tmp_path, "one", merged_model=str(merged), adapter=str(adapter))
    assert model_named(run, Path("/elsewhere")) == merged
    assert model_named(tmp_path / "latest", Path("/elsewhere")) == merged


def test_a_run_is_known_by_its_id_by_last_and_by_latest(tmp_path: Path) -> None:
    adapter = model_in(tmp_path / "adapter", "adapter_config.json")
    other = model_in(tmp_path / "other")
    reported(tmp_path, "one", adapter=str(adapter))
    reported(tmp_path, "two", merged_model=str(other))
    assert model_named("one", tmp_path) == adapter
    assert model_named("last", tmp_path) == other
    assert run_named(str(tmp_path / "latest"), tmp_path) == run_named("last", tmp_path) == "two"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    reported(tmp_path, "three", merged_model=str(other))
    assert not (tmp_path / "latest").is_symlink(), "what the user has stays"


def test_what_is_no_model_is_said_with_what_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"models:/NAME@champion"):
        model_named("nowhere", tmp_path)
    with pytest.raises(RecipeError, match="There is no run in"):
        model_named("last", tmp_path)
    reported(tmp_path, "failed", "failed")
    with pytest.raises(ArtifactError, match="run failed made no model: it is failed"):
        model_named("last", tmp_path)


def test_a_registered_model_is_known_by_alias_and_version(home: Path) -> None:
    client = registry_client(tracking_uri(home))
    client.create_registered_model("support")
    here = model_in(home / "artifacts" / "merge" / "key" / "model")
    there = model_in(home / "copied" / "a b")
    first = client.create_model_version("support", "s3://bucket/x", tags={"stage_key": "key"})
    second = client.create_model_version("support", there.as_uri())
    client.create_model_version("support", "s3://bucket/x")
    client.set_registered_model_alias("support", "champion", first.version)
    assert model_named("models:/support@champion", home) == here
    assert model_named(f"models:/support/{second.version}", home) == there
    for name, said in (
        ("models:/support/3", "mlflow artifacts download -u models:/support/3"),
        ("models:/support@nobody", "knows the models support"),
        ("models:/other/1", "knows the models support"),
        ("models:/support", "Write models:/NAME@champion or models:/NAME/2"),
    ):
        with pytest.raises(RecipeError) as caught:
            model_named(name, home)
        assert said in caught.value.message
    assert json.loads((here / "config.json").read_text()) == {}
