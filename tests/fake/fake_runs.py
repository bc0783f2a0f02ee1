"""Recipes and runs of the fake stages, for tests and for the processes that tests kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alignflow.recipe import Recipe
from alignflow.stages.spec import StageSpec

STAGES = ("prepare", "sft", "reward", "dpo", "evaluate", "merge")
FAKE_STAGES = dict.fromkeys((*STAGES, "judge"), "fake_stages:run")
RUN_FLOW = Path(__file__).with_name("run_flow.py")


def fake_recipe(**sections: Any) -> Recipe:
    """All six stages, on built-in sources that are there for every test."""
    fields: dict[str, Any] = {
        "name": "fake",
        "base_model": "builtin:freight-base",
        "data": {
            "sft": "builtin:freight-sft",
            "preferences": "builtin:freight-preferences",
            "evaluation": "builtin:freight-evaluation",
        },
        "tuning": {"rank": 8, "target_modules": "attention-qv"},
        "sft": {"batch_size": 8},
        "reward": {},
        "method": "dpo",
        "dpo": {},
    }
    return Recipe.model_validate(fields | sections)


def fake_spec(home: Path, order: str = "", stage: str = "sft", **compute: Any) -> StageSpec:
    """A stage that does what `order` says; see fake_stages."""
    return StageSpec(
        stage=stage,
        home=str(home),
        seed=0,
        params={"fake": order, "section": {"batch_size": 8}},
        compute=compute,
    )


def executions(orders: Path) -> list[str]:
    """Names of the stages that started, in order, over all runs."""
    path = orders / "executions.txt"
    return path.read_text().split() if path.exists() else []


def start_flow(home: Path, server: str, **environment: str) -> subprocess.Popen[bytes]:
    """The flow of `fake_recipe` in a process of its own, against a server that outlives it."""
    return subprocess.Popen(
        [sys.executable, str(RUN_FLOW), str(home)],
        env={**os.environ, "PREFECT_API_URL": server, **environment},
        start_new_session=True,
    )


def wait_until(holds: Callable[[], Any], seconds: float = 30.0, every: float = 0.02) -> Any:
    """What `holds` returns once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(every)
    raise TimeoutError(f"nothing came in {seconds} s")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_of(home: Path, stage: str) -> list[int]:
    """Process of a sleeping fake stage and its own child."""
    found = list(home.glob(f"work/{stage}/*/pids.txt"))
    numbers = [int(word) for path in found for word in path.read_text().split()]
    return numbers if len(numbers) == 2 else []


def states(report: Mapping[str, Any]) -> dict[str, str]:
    """Stage to state in a report."""
    return {stage["stage"]: stage["state"] for stage in report["stages"]}


def new_home(folder: Path, mlflow_store: Path) -> Path:
    """A home whose MLflow store has its tables."""
    folder.mkdir(parents=True)
    shutil.copy(mlflow_store, folder / "mlflow.db")
    return folder


def use_fakes(monkeypatch: pytest.MonkeyPatch, orders: Path) -> None:
    """Stages of this test are fakes that obey the files in `orders`."""
    from alignflow.pipeline import retries
    from alignflow.stages import forkserver

    monkeypatch.setenv("ALIGNFLOW_TEST_STAGES", json.dumps(FAKE_STAGES))
    monkeypatch.setenv("PYTHONPATH", str(RUN_FLOW.parent), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_ORDERS", str(orders))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(retries, "FIRST_DELAY_SECONDS", 0.0)
    monkeypatch.setattr(
        forkserver, "Forkserver", partial(forkserver.Forkserver, preload=("fake_stages",))
    )
