"""The retraining flow is killed at each named point and at random: no row lost, none counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import executions
from retrain_cases import MODEL, aliases, drop, head, served, undecided, where

from alignflow.ledger import champion, status
from alignflow.lineage.registry import reconcile

RUN = Path(__file__).parent.parent / "fake" / "run_retrain.py"
PROMOTION = [
    "ledger.freeze.commit",
    "retrain.frozen",
    "retrain.founded",
    "promotion.registered",
    "retrain.gated",
    "ledger.promote.commit",
    "ledger.promote.committed",
    "promotion.alias",
]
REJECTION = ["ledger.release.commit", "ledger.release.committed"]


class Runs:
    """Retrains in processes of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._server = subprocess.Popen(
            [sys.executable, str(RUN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, fault: str = "") -> int:
        """Process id of a new run."""
        assert self._server.stdin is not None
        self._server.stdin.write(f"{self.home} {fault}\n")
        self._server.stdin.flush()
        return int(self._answer())

    def end(self) -> int:
        """Exit code of the run, negative for a signal."""
        return int(self._answer())

    def run(self, fault: str = "") -> int:
        self.start(fault)
        return self.end()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()

    def close(self) -> None:
        self._server.communicate(timeout=60)


@pytest.fixture
def runs(
    home: Path, prefect_server: str, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runs]:
    """Runs on fake stages, against a Prefect server that outlives them."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    found = Runs(home)
    yield found
    found.close()


def check(home: Path, rows: int) -> None:
    """Every row is in one place, one snapshot at most is undecided, the alias is the ledger's head."""
    found = status(home)
    assert sum(where(home)) == found["rows"] == rows
    assert [entry["state"] for entry in found["snapshots"]].count("undecided") <= 1
    reconcile(home, MODEL)
    current = champion(home, MODEL)
    assert served(home) == (current.digest if current else None)


def own_stages(orders: Path) -> list[str]:
    """Stages that trained; `evaluate` and `merge` ran for the champion too."""
    return [stage for stage in executions(orders) if stage not in ("evaluate", "merge")]


@pytest.mark.proof
@pytest.mark.timeout(500)
def test_kills_at_every_point_of_a_promotion_lose_nothing_and_repeat_no_stage(
    home: Path, orders: Path, runs: Runs
) -> None:
    (orders / "quality").write_text("0.8")
    drop(home, 0, 40)
    for point in PROMOTION:
        assert runs.run(point) == -signal.SIGKILL, point
        check(home, 40)
    assert (where(home), head(home), undecided(home)) == ((0, 0, 40), 1, None)
    assert runs.run() == 0
    assert (where(home), head(home)) == ((0, 0, 40), 1)
    assert set(aliases(home)) == {"champion"}
    assert own_stages(orders) == ["prepare", "sft", "reward", "dpo"]


@pytest.mark.proof
@pytest.mark.timeout(500)
def test_kills_in_a_rejection_and_at_random_moments_give_each_row_one_verdict(
    home: Path, orders: Path, runs: Runs
) -> None:
    (orders / "quality").write_text("0.2")
    drop(home, 0, 40)
    for point in REJECTION:
        assert runs.run(point) == -signal.SIGKILL, point
        check(home, 40)
    assert (where(home), head(home), undecided(home)) == ((40, 0, 0), 0, None)
    assert runs.run() == 0  # what was rejected does not call for a retrain by itself
    assert where(home) == (40, 0, 0)

    (orders / "quality").write_text("0.9")
    drop(home, 40, 70)
    chance = random.Random()
    for _ in range(2):
        pid = runs.start()
        time.sleep(chance.uniform(0.3, 4.0))
        os.kill(pid, signal.SIGKILL)
        runs.end()
        check(home, 70)
    assert runs.run() == 0
    check(home, 70)
    assert (where(home), head(home)) == ((0, 0, 70), 1)
    assert own_stages(orders).count("dpo") == 2
