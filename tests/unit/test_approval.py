"""Who waits for a person, who leaves the snapshot alone, and what silence means."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from alignflow.gate import Verdict
from alignflow.recipe import RetrainSection
from tasks.approval import awaited_elsewhere, forget_approval, with_approval

pytestmark = pytest.mark.slow  # imports Prefect

ASKS = RetrainSection(approval="required", approval_timeout_hours=2)


def verdict(decision: str) -> Verdict:
    return Verdict.model_validate(
        {
            "verdict": decision,
            "reasons": ["better"],
            "candidate": "c",
            "champion": "o",
            "evaluation": "e",
            "profile": "balanced",
            "look": 1,
            "alpha": 0.05,
        }
    )


def waiting(home: Path, seconds: float) -> None:
    """Another run waits for so many seconds more."""
    place = home / "work" / "approvals" / "default-v1.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"flow_run_id": "other", "until": time.time() + seconds}))


def test_a_snapshot_that_another_run_asks_about_is_left_alone_until_its_limit(
    tmp_path: Path,
) -> None:
    assert awaited_elsewhere(tmp_path, "default", "v1") is None
    waiting(tmp_path, 3600)
    found = awaited_elsewhere(tmp_path, "default", "v1")
    assert found is not None and "flow run other, for 1.0 hours more" in found
    assert awaited_elsewhere(tmp_path, "default", "v2") is None


def test_silence_is_inconclusive_for_the_run_that_comes_after_the_limit(tmp_path: Path) -> None:
    waiting(tmp_path, -1)
    assert awaited_elsewhere(tmp_path, "default", "v1") is None
    found = with_approval(verdict("promote"), ASKS, tmp_path, "v1", 0, "page")
    assert found.verdict == "inconclusive"
    assert found.reasons == ["nobody answered within 2 hours", "better"]
    forget_approval(tmp_path, "default", "v1")
    assert not list((tmp_path / "work" / "approvals").iterdir())


@pytest.mark.parametrize("decision", ["reject", "inconclusive"])
def test_nobody_is_asked_about_what_would_not_be_promoted(tmp_path: Path, decision: str) -> None:
    given = verdict(decision)
    assert with_approval(given, ASKS, tmp_path, "v1", 0, "page") == given
    promoted = verdict("promote")
    assert with_approval(promoted, RetrainSection(), tmp_path, "v1", 0, "page") == promoted
    assert not (tmp_path / "work").exists()
