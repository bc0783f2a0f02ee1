from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignflow.errors import ArtifactError, StageError
from alignflow.stages import artifacts
from alignflow.stages.artifacts import Artifact, publish
from alignflow.stages.spec import RowAccount, StageResult, StageSpec


def spec(home: Path, **changes) -> StageSpec:
    return StageSpec(
        **{"stage": "sft", "home": str(home), "params": {"rank": 8}, "seed": 0, **changes}
    )


def published(home: Path) -> Artifact:
    made = spec(home)
    output = artifacts.work_directory(home, made.stage, made.key) / "output"
    (output / "adapter").mkdir(parents=True)
    (output / "adapter" / "weights").write_bytes(b"weights")
    (output / "notes.json").write_text("{}")
    return publish(made, StageResult(metrics={"loss": 1.5}), seconds=2.0, attempts=1)


def test_a_published_artifact_verifies_and_its_work_is_gone(tmp_path: Path) -> None:
    artifact = published(tmp_path)
    assert artifacts.find(tmp_path, "sft", artifact.key) == artifact
    assert artifact.result.metrics == {"loss": 1.5}
    assert not artifacts.work_directory(tmp_path, "sft", artifact.key).exists()


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "manifest"])
def test_a_damaged_artifact_is_a_miss_and_is_kept_aside(tmp_path: Path, damage: str) -> None:
    artifact = published(tmp_path)
    weights = artifact.directory / "adapter" / "weights"
    match damage:
        case "changed":
            weights.write_bytes(b"Weights")
        case "removed":
            weights.unlink()
        case "added":
            (artifact.directory / "adapter" / "more").write_bytes(b"")
        case "manifest":
            (artifact.directory / "manifest.json").write_text('{"stage": "sft"')
    assert artifacts.find(tmp_path, "sft", artifact.key) is None
    assert (tmp_path / "artifacts" / "sft" / f"bad-{artifact.key}-0").is_dir()


def test_verification_names_the_file_that_changed(tmp_path: Path) -> None:
    artifact = published(tmp_path)
    (artifact.directory / "notes.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"notes\.json"):
        artifacts.verify(artifact.directory)


def test_a_part_has_a_digest_of_its_own(tmp_path: Path) -> None:
    artifact = published(tmp_path)
    assert artifact.digest(["adapter"]) == artifact.digest(["adapter/weights"])
    assert artifact.digest(["adapter"]) != artifact.digest(["notes.json"])
    with pytest.raises(ArtifactError, match="has no model"):
        artifact.digest(["model"])


def test_two_processes_cannot_work_on_one_stage(tmp_path: Path) -> None:
    with (
        artifacts.locked(tmp_path),
        pytest.raises(StageError, match="another process"),
        artifacts.locked(tmp_path),
    ):
        pass
    with artifacts.locked(tmp_path):
        pass


def test_a_key_names_the_work_and_not_the_place_or_the_hardware(tmp_path: Path) -> None:
    key = spec(tmp_path).key
    assert (
        spec(tmp_path / "elsewhere", compute={"micro_batch_size": 1}, paths={"a": "/b"}).key == key
    )
    assert spec(tmp_path, seed=1).key != key
    assert spec(tmp_path, params={"rank": 16}).key != key


def test_the_manifest_is_plain_json_that_holds_the_whole_spec(tmp_path: Path) -> None:
    artifact = published(tmp_path)
    manifest = json.loads((artifact.directory / "manifest.json").read_text())
    assert StageSpec.model_validate(manifest["spec"]).key == artifact.key
    assert manifest["files"]["adapter/weights"]["bytes"] == 7


def test_a_row_account_says_whether_every_row_is_accounted_for() -> None:
    assert RowAccount(read=10, trained=6, truncated=2, held_out=1, dropped={"too_long": 3}).balanced
    assert not RowAccount(read=10, trained=6).balanced
