"""The flow on fake stages, with a real Prefect server and a real MLflow store."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_runs import STAGES, executions, fake_recipe, new_home, states, use_fakes

from alignflow.errors import AlignflowError, CertificateError, DataError, RecipeError
from alignflow.pipeline.report import load_report
from alignflow.pipeline.retries import retry_delays
from alignflow.stages.artifacts import artifact_directory
from alignflow.stages.events import EVENTS_FILE, read_events
from alignflow.stages.spec import StageSpec
from flows.finetune import finetune
from tasks.policy import worth_retrying


@pytest.fixture(autouse=True)
def harness(prefect_server: str, orders: Path) -> None:
    """A Prefect server, and fakes for stages."""


@pytest.fixture(scope="module")
def finished(
    prefect_server: str, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """One run's report and home, for tests that add to it."""
    home = new_home(tmp_path_factory.mktemp("finished") / "home", mlflow_store)
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, home.parent)
        return {**finetune(recipe=fake_recipe(), home=home), "home": home}


def artifact_of(home: Path, report: dict[str, Any], stage: str) -> Path:
    return artifact_directory(home, stage, stage_of(report, stage)["key"])


def stage_of(report: dict[str, Any], stage: str) -> dict[str, Any]:
    return next(entry for entry in report["stages"] if entry["stage"] == stage)


def all_are(state: str) -> dict[str, str]:
    return dict.fromkeys(STAGES, state)


def test_a_second_identical_run_is_all_cached(finished: dict[str, Any], orders: Path) -> None:
    home = finished["home"]
    assert states(finished) == all_are("completed")
    started = time.monotonic()
    second = finetune(recipe=fake_recipe(), home=home)
    assert states(second) == all_are("cached")
    assert executions(orders) == []
    assert time.monotonic() - started < 15
    assert load_report(home, second["run_id"]) == second


def test_changing_beta_repeats_dpo_and_what_follows_and_nothing_else(
    finished: dict[str, Any], orders: Path
) -> None:
    report = finetune(recipe=fake_recipe(dpo={"beta": 0.2}), home=finished["home"])
    assert executions(orders) == ["dpo", "evaluate", "merge"]
    assert states(report) == all_are("completed") | dict.fromkeys(
        ("prepare", "sft", "reward"), "cached"
    )


def test_a_damaged_artifact_is_moved_aside_and_made_again_though_prefect_remembers_it(
    finished: dict[str, Any], orders: Path
) -> None:
    home = finished["home"]
    damaged = artifact_of(home, finished, "dpo")
    (damaged / "adapter" / "content.txt").write_text("changed on disk")
    second = finetune(recipe=fake_recipe(), home=home)
    assert executions(orders) == ["dpo"]  # the same content again: what follows is cached
    assert states(second) == all_are("cached") | {"dpo": "completed"}
    aside = damaged.with_name(f"bad-{damaged.name}-0")
    assert (aside / "adapter" / "content.txt").read_text() == "changed on disk"


def test_an_artifact_that_prefect_knows_nothing_of_is_cached(
    finished: dict[str, Any], orders: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"  # another home has other cache keys
    shutil.copytree(finished["home"], moved)
    report = finetune(recipe=fake_recipe(), home=moved)
    assert states(report) == all_are("cached")
    assert executions(orders) == []


@pytest.mark.parametrize("code", [67, 70, 75])
def test_what_may_pass_is_retried(code: int, home: Path, orders: Path) -> None:
    (orders / "sft").write_text(f"fail_once:{code}")
    report = finetune(recipe=sft_only(), home=home)
    assert stage_of(report, "sft")["attempts"] == 2
    assert executions(orders) == ["prepare", "sft", "sft"]


@pytest.mark.parametrize("code", [65, 72])
def test_what_will_not_pass_is_not_retried_and_the_report_says_why(
    code: int, home: Path, orders: Path
) -> None:
    (orders / "sft").write_text(f"fail:{code}")
    with pytest.raises(AlignflowError, match=f"asked to fail with {code}") as raised:
        finetune(recipe=sft_only(), home=home, run_id="failed")
    assert raised.value.exit_code == code
    assert executions(orders) == ["prepare", "sft"]
    report = load_report(home, "failed")
    assert report["status"] == "failed"
    assert states(report)["sft"] == "failed"


def test_only_what_the_table_names_is_retried() -> None:
    class Failed:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self) -> None:
            raise self.error

    from alignflow.errors import BY_EXIT_CODE

    retried = {
        code
        for code, error in BY_EXIT_CODE.items()
        if worth_retrying(None, None, Failed(error("no")))
    }
    assert retried == {67, 70, 75}
    assert not worth_retrying(None, None, Failed(ValueError("a bug in the parent")))


def test_retries_wait_longer_each_time_and_at_most_five_minutes() -> None:
    assert retry_delays(5, 2.0) == [2.0, 8.0, 32.0, 128.0, 300.0]


def test_attempts_end_with_the_recipes_retries(home: Path, orders: Path) -> None:
    (orders / "sft").write_text("fail:70")
    with pytest.raises(AlignflowError):
        finetune(recipe=sft_only(compute={"retries": 1}), home=home)
    assert executions(orders).count("sft") == 2


def test_out_of_memory_twice_quarters_the_micro_batch_of_the_same_key(
    home: Path, orders: Path
) -> None:
    (orders / "sft").write_text("fail_twice:67")
    report = finetune(recipe=sft_only(), home=home)
    directory = artifact_of(home, report, "sft")
    started = [
        event for event in read_events(directory / EVENTS_FILE) if event["kind"] == "started"
    ]
    sizes = [event["compute"]["micro_batch_size"] for event in started]
    assert sizes == ["auto", 4, 2]
    assert stage_of(report, "sft")["attempts"] == 3
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["spec"]["params"]["section"]["batch_size"] == 8


def test_a_stage_that_stalls_is_stopped_and_retried(home: Path, orders: Path) -> None:
    (orders / "sft").write_text("sleep_once:60")
    report = finetune(recipe=sft_only(compute={"timeout_seconds": 2}), home=home)
    assert stage_of(report, "sft")["attempts"] == 2


def test_a_merged_model_without_a_passed_certificate_is_exit_code_72_each_time(
    home: Path, orders: Path
) -> None:
    (orders / "merge").write_text('uncertified:{"status": "failed"}')
    recipe = fake_recipe(reward=None, method="none", dpo=None)
    for _ in range(2):
        with pytest.raises(CertificateError):
            finetune(recipe=recipe, home=home, run_id="uncertified")
        assert states(load_report(home, "uncertified"))["merge"] == "failed"


def test_a_relative_home_is_refused_for_a_deployed_flow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "some-deployment")
    monkeypatch.delenv("ALIGNFLOW_HOME", raising=False)
    for home in (None, Path("relative")):
        with pytest.raises(RecipeError, match="relative path, but a deployed flow runs in a temp"):
            finetune(recipe=fake_recipe(), home=home)
    assert not list(tmp_path.glob("**/mlflow.db"))


def test_data_that_is_not_there_fails_the_run_before_any_stage(home: Path, orders: Path) -> None:
    absent = {"sft": str(home / "absent.jsonl")}
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        finetune(recipe=sft_only(data=absent), home=home, run_id="absent")
    assert executions(orders) == []
    assert load_report(home, "absent")["status"] == "failed"


def test_a_gpu_stage_waits_for_a_slot_only_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks import policy

    taken: list[str] = []

    def slot(name: str, **options: Any) -> Iterator[None]:
        taken.append(name)
        from contextlib import nullcontext

        return nullcontext()  # type: ignore[return-value]

    monkeypatch.setattr(policy, "concurrency", slot)
    for gpu in (False, True):
        monkeypatch.setattr(policy, "has_gpu", lambda gpu=gpu: gpu)
        for stage in ("prepare", "sft"):
            with policy.device_slot(stage):
                pass
    assert taken == ["gpu"]


def test_the_cache_key_is_the_stage_key_within_one_home() -> None:
    from tasks.policy import by_stage_key

    here, there = (
        StageSpec(stage="sft", home=home, params={}, seed=0) for home in ("/here", "/there")
    )
    assert here.key == there.key
    assert by_stage_key(None, {"spec": here}) != by_stage_key(None, {"spec": there})


def sft_only(**sections: Any):
    return fake_recipe(
        **({"data": {"sft": "builtin:freight-sft"}} | sections),
        **{"reward": None, "method": "none", "dpo": None, "merge": None},
    )
