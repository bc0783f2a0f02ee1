"""One attempt of one stage in a real child process: what it may touch, and how it may end."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_runs import alive, fake_spec, pids_of, wait_until

from alignflow.errors import (
    BY_EXIT_CODE,
    AlignflowError,
    DiskSpaceError,
    OutOfMemory,
    StageError,
)
from alignflow.stages.artifacts import artifact_directory, find, locked, work_directory
from alignflow.stages.events import EVENTS_FILE, read_events
from alignflow.stages.forkserver import Forkserver
from alignflow.stages.launch import run_stage
from alignflow.stages.spec import StageSpec


@pytest.fixture(autouse=True)
def fakes(orders: Path) -> None:
    """Every stage is a fake."""


@pytest.fixture(scope="module")
def server() -> Iterator[Forkserver]:
    """One forkserver for the module; it has imported the fake stages only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fake"))
        forkserver = Forkserver(preload=("alignflow.stages.artifacts",))
    yield forkserver
    forkserver.close()


def events_of(spec: StageSpec) -> list[dict]:
    return read_events(work_directory(Path(spec.home), spec.stage, spec.key) / EVENTS_FILE)


@pytest.mark.parametrize("code", sorted(BY_EXIT_CODE))
def test_an_exit_code_becomes_its_error_with_the_childs_message(
    code: int, tmp_path: Path, server: Forkserver
) -> None:
    with pytest.raises(BY_EXIT_CODE[code], match=f"asked to fail with {code}") as raised:
        run_stage(fake_spec(tmp_path, f"fail:{code}"), server=server)
    assert raised.value.exit_code == code


def test_only_out_of_memory_unexplained_failure_and_preemption_are_retried() -> None:
    assert {code for code, error in BY_EXIT_CODE.items() if error.retried} == {67, 70, 75}


@pytest.mark.parametrize("fresh", [True, False])
def test_a_child_has_private_files_no_input_its_own_group_and_no_secrets(
    tmp_path: Path, server: Forkserver, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    for secret in ("PREFECT_API_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(secret, "secret")
    seen = surroundings(fake_spec(tmp_path, "surroundings"), None if fresh else server)
    environment = seen.pop("environment")
    log = work_log(tmp_path)
    assert seen == {"umask": 0o077, "stdin": "/dev/null", "stdout": str(log), "group": True}
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == environment["HF_DATASETS_OFFLINE"] == "1"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"


def work_log(home: Path) -> Path:
    spec = fake_spec(home, "surroundings")
    return work_directory(home, spec.stage, spec.key) / "log.txt"


def surroundings(spec: StageSpec, server: Forkserver | None) -> dict:
    return json.loads(said_by(spec, server))


def said_by(spec: StageSpec, server: Forkserver | None) -> str:
    """First message of a stage."""
    events: list[Mapping[str, Any]] = []
    run_stage(spec, server=server, on_event=events.append)
    return next(event["text"] for event in events if event["kind"] == "message")


def test_prepare_may_reach_the_hub_with_the_token(
    tmp_path: Path, server: Forkserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "token")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    environment = surroundings(fake_spec(tmp_path, "surroundings", "prepare"), server)[
        "environment"
    ]
    assert "HF_HUB_OFFLINE" not in environment
    assert environment["HF_TOKEN"] == "token"


def test_what_a_child_writes_is_private(tmp_path: Path, server: Forkserver) -> None:
    artifact = run_stage(fake_spec(tmp_path), server=server)
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in artifact.directory.rglob("*")}
    assert modes == {0}


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        ("break:enospc", DiskSpaceError, "No space left while writing under .*Free space"),
        ("break:memory", OutOfMemory, "Out of memory: .*Tried to allocate 2 GiB"),
        ("break:other", StageError, "ValueError: something \\(log: .*log.txt\\)"),
        ("kill:SIGKILL", StageError, "killed by SIGKILL"),
        ("kill:SIGSEGV", StageError, "killed by SIGSEGV"),
        ("kill:SIGTERM", AlignflowError, "asked the stage to stop"),
    ],
)
def test_a_breakdown_is_named(
    order: str, error: type[AlignflowError], text: str, tmp_path: Path, server: Forkserver
) -> None:
    with pytest.raises(error, match=text):
        run_stage(fake_spec(tmp_path, order), server=server)
    last = events_of(fake_spec(tmp_path, order))[-1]
    assert last["kind"] == "error"


def test_sigterm_is_preemption(tmp_path: Path, server: Forkserver) -> None:
    with pytest.raises(AlignflowError) as raised:
        run_stage(fake_spec(tmp_path, "kill:SIGTERM"), server=server)
    assert raised.value.exit_code == 75


def test_a_kill_counts_as_out_of_memory_when_the_kernel_counts_one_more(
    tmp_path: Path, server: Forkserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr("alignflow.stages.launch.count_oom_kills", lambda: next(counts))
    with pytest.raises(OutOfMemory):
        run_stage(fake_spec(tmp_path, "kill:SIGKILL"), server=server)


def test_after_out_of_memory_the_micro_batch_is_halved_and_the_key_stays(
    tmp_path: Path, server: Forkserver
) -> None:
    spec = fake_spec(tmp_path, "fail_once:67")
    with pytest.raises(OutOfMemory):
        run_stage(spec, server=server)
    artifact = run_stage(spec, server=server)
    assert artifact.result.details["micro_batch_size"] == 4
    assert artifact.spec.params["section"]["batch_size"] == 8
    assert artifact.key == spec.key
    assert artifact.attempts == 2


@pytest.mark.parametrize("fresh", [True, False])
def test_a_stage_that_is_silent_is_stopped_with_what_it_started(
    tmp_path: Path, server: Forkserver, fresh: bool
) -> None:
    spec = fake_spec(tmp_path, "sleep:60", stall_seconds=1.5)
    with pytest.raises(StageError, match=r"no progress for 1.5 s .*stall_seconds"):
        run_stage(spec, server=None if fresh else server)
    pids = pids_of(tmp_path, "sft")
    assert len(pids) == 2
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_stage_that_runs_too_long_is_stopped(tmp_path: Path, server: Forkserver) -> None:
    with pytest.raises(StageError, match=r"ran for 0.3 s .*timeout_seconds"):
        run_stage(fake_spec(tmp_path, "sleep:60", timeout_seconds=0.3), server=server)


def test_an_attempt_that_ends_well_leaves_no_process_behind(
    tmp_path: Path, server: Forkserver
) -> None:
    spec = fake_spec(tmp_path, "background:60")
    run_stage(spec, server=server)
    wait_until(lambda: not alive(int((tmp_path / "background.txt").read_text())))


def test_a_stage_whose_forkserver_died_fails_and_its_retry_is_fresh(tmp_path: Path) -> None:
    spec = fake_spec(tmp_path, "sleep_once:60")
    dying = Forkserver(preload=())

    def kill_server(event: object) -> None:
        wait_until(lambda: pids_of(tmp_path, "sft"))
        os.kill(dying._process.pid, signal.SIGKILL)

    with pytest.raises(StageError, match="SIGKILL"):
        run_stage(spec, server=dying, on_event=kill_server)
    wait_until(lambda: not any(alive(pid) for pid in pids_of(tmp_path, "sft")))
    assert run_stage(spec, server=dying).attempts == 2
    dying.close()


def test_a_finished_artifact_is_found_and_not_made_again(
    tmp_path: Path, server: Forkserver
) -> None:
    first = run_stage(fake_spec(tmp_path), server=server)
    assert run_stage(fake_spec(tmp_path), server=server) == first
    assert find(tmp_path, "sft", first.key) == first


def test_a_stage_that_another_process_works_on_is_not_run_twice(
    tmp_path: Path, server: Forkserver
) -> None:
    spec = fake_spec(tmp_path)
    with (
        locked(work_directory(tmp_path, "sft", spec.key)),
        pytest.raises(StageError, match="being worked on by another process"),
    ):
        run_stage(spec, server=server)


def test_a_forked_stage_computes_with_two_threads(tmp_path: Path) -> None:
    """OpenMP's threads do not survive a fork: a server that had started them would hang here."""
    real = Forkserver()
    spec = fake_spec(tmp_path, "matmul", threads=2, stall_seconds=60)
    assert said_by(spec, real).startswith("2 threads")
    told = read_events(artifact_directory(tmp_path, spec.stage, spec.key) / EVENTS_FILE)
    assert [event["count"] for event in told if event["kind"] == "threads"] == [2]
    real.close()
