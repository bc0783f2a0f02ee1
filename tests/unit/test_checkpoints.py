from __future__ import annotations

from pathlib import Path

import pytest

from alignflow.training.engine.checkpoints import certify, is_whole, newest_whole, rotate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in (5, 10, 100):
        directory = tmp_path / f"checkpoint-{step}"
        (directory / "deep").mkdir(parents=True)
        (directory / "optimizer.pt").write_bytes(b"state" * step)
        (directory / "deep" / "weights").write_bytes(b"weights")
        certify(directory)
    return tmp_path


def test_the_newest_checkpoint_by_number_is_taken(root: Path) -> None:
    assert newest_whole(root) == root / "checkpoint-100"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "optimizer.pt").unlink(),
        lambda path: (path / "optimizer.pt").write_bytes(b"flipped"),
        lambda path: (path / "added").write_bytes(b""),
        lambda path: (path / "certificate.json").unlink(),
        lambda path: (path / "certificate.json").write_text('{"fil'),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    root: Path, damage: object
) -> None:
    damage(root / "checkpoint-100")  # type: ignore[operator]
    assert not is_whole(root / "checkpoint-100")
    assert newest_whole(root) == root / "checkpoint-10"
    assert (root / "bad-checkpoint-100-0").is_dir()


def test_rotation_keeps_two_and_never_deletes_for_an_uncertified_one(root: Path) -> None:
    (root / "checkpoint-200").mkdir()
    rotate(root)
    assert sorted(path.name for path in root.iterdir()) == [
        "checkpoint-10",
        "checkpoint-100",
        "checkpoint-200",
    ]


def test_without_checkpoints_training_starts_anew(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "absent") is None
