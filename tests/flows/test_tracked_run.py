"""What a run leaves in MLflow and in Prefect."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_runs import STAGES, fake_recipe, new_home, states, use_fakes
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from webhook import SLUG, saved_webhook

from alignflow.commands.up import mlflow_environment
from alignflow.files import digest_json
from alignflow.lineage.registry import register_candidate
from alignflow.pipeline.report import load_report
from alignflow.services.children import Service
from alignflow.stages.artifacts import read_manifest
from alignflow.tracking.stage_record import sidecar
from flows.finetune import finetune

PASSWORD = "twelve letters"


@pytest.fixture(scope="module")
def finished(
    prefect_server: str, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The report of one run, with the home it stands in."""
    home = new_home(tmp_path_factory.mktemp("tracked") / "home", mlflow_store)
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, home.parent)
        return {**finetune(recipe=fake_recipe(), home=home, run_id="first"), "home": home}


@pytest.fixture
def client(finished: dict[str, Any]) -> MlflowClient:
    return client_of(finished["home"])


def client_of(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def runs_of(client: MlflowClient, filter_string: str = "") -> list[Run]:
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], filter_string))


def parent_of(client: MlflowClient, run_id: str) -> Run:
    return runs_of(client, f"tags.run_id = '{run_id}'")[0]


def stage_run(client: MlflowClient, stage: str) -> Run:
    found = runs_of(client, f"tags.stage = '{stage}'")
    assert len(found) == 1
    return found[0]


def paths(client: MlflowClient, run: Run, folder: str | None = None) -> set[str]:
    return {entry.path for entry in client.list_artifacts(run.info.run_id, folder)}


def test_each_executed_stage_has_one_finished_run_nested_under_the_pipelines(
    client: MlflowClient, finished: dict[str, Any]
) -> None:
    parent = parent_of(client, "first")
    assert finished["mlflow"]["run_id"] == parent.info.run_id
    assert len(runs_of(client)) == 1 + len(STAGES)
    for entry in finished["stages"]:
        run = stage_run(client, entry["stage"])
        assert run.info.run_id == entry["mlflow_run_id"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["stage_key"] == entry["key"]
        assert run.data.tags["attempts"] == "1"
        assert parent.data.tags[f"stage_run.{entry['stage']}"] == run.info.run_id


TUNING = {
    "lora_rank": "8",
    "lora_alpha": "16.0",
    "lora_scaling": "2.0",
    "lora_dropout": "0.0",
    "lora_target_modules": "attention-qv",
    "tuning_mode": "lora",
    "quantization": "none",
}
RESOLVED = {
    "lora_target_modules_resolved": "layers.q_proj,layers.v_proj",
    "trainable_params": "10",
    "total_params": "1000",
    "trainable_percent": "1.0",
}


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_training_run_has_the_tuning_as_asked_and_as_resolved(
    stage: str, client: MlflowClient
) -> None:
    params = stage_run(client, stage).data.params
    assert (TUNING | RESOLVED).items() <= params.items()
    assert {"learning_rate", "batch_size", "seed", "version_torch"} <= params.keys()
    assert "parent_data_digest" in params


def test_the_pipelines_run_repeats_the_tuning_and_the_final_metrics(client: MlflowClient) -> None:
    parent = parent_of(client, "first")
    assert (TUNING | RESOLVED).items() <= parent.data.params.items()
    assert parent.data.params["recipe_digest"] == digest_json(fake_recipe().model_dump(mode="json"))
    assert parent.data.metrics["dpo.accuracy"] == 0.5
    assert parent.data.tags["status"] == "completed"


def test_params_are_found_without_quotes(client: MlflowClient) -> None:
    assert len(runs_of(client, "params.lora_rank = '8' and params.dpo_beta = '0.1'")) == 1


def test_metrics_are_there_by_step_once(client: MlflowClient) -> None:
    run = stage_run(client, "dpo")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.metrics["final_accuracy"] == 0.5


def test_data_sets_are_recorded_by_digest(client: MlflowClient) -> None:
    prepare = stage_run(client, "prepare").inputs.dataset_inputs
    assert {entry.dataset.name for entry in prepare} == {
        f"builtin:freight-{name}" for name in ("sft", "preferences", "evaluation")
    }
    assert all(len(entry.dataset.digest) == 36 for entry in prepare)
    sft = stage_run(client, "sft").inputs.dataset_inputs
    assert [entry.dataset.name for entry in sft] == ["prepared"]
    digest = stage_run(client, "sft").data.params["parent_data_digest"]
    assert digest.startswith(sft[0].dataset.digest)


def test_the_adapter_and_the_report_are_artifacts(client: MlflowClient) -> None:
    for stage in ("sft", "reward", "dpo"):
        assert "adapter/content.txt" in paths(client, stage_run(client, stage), "adapter")
    assert paths(client, parent_of(client, "first")) == {"report.json", "report.html"}


def test_the_certified_model_is_registered_from_its_directory_without_an_alias(
    client: MlflowClient, finished: dict[str, Any]
) -> None:
    model = client.get_registered_model("fake")
    assert not model.aliases
    versions = client.search_model_versions("name = 'fake'")
    assert len(versions) == 1
    assert versions[0].source == Path(finished["merged_model"]).as_uri()
    assert versions[0].run_id == stage_run(client, "merge").info.run_id


@pytest.mark.proof
def test_behind_a_server_that_asks_for_a_password_the_model_is_registered_from_a_copy_and_so_is_a_later_candidate(
    finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = read_manifest(Path(finished["stages"][-1]["artifact"]))
    with mlflow_server(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(MlflowException, match="not authenticated"):
            register_candidate(finished["home"], "fake", merge)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        client = MlflowClient(address, address)
        for name in ("fake", "another"):
            version = register_candidate(finished["home"], name, merge)
            copy = client.get_model_version(name, version)
            listed = client.list_artifacts(copy.run_id, "model")
            assert {Path(entry.path).name for entry in listed} == {
                path.name for path in (merge.directory / "model").iterdir()
            }
            assert client.get_model_version_by_alias(name, "candidate").version == version


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Address of a real MLflow server that asks for a password."""
    with socket.create_server(("127.0.0.1", 0)) as line:
        port = line.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
        *("--artifacts-destination", str(folder / "store"), "--app-name", "basic-auth"),
    ]
    environment = {
        **os.environ,
        **mlflow_environment("0.0.0.0", folder),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
    }
    service = Service("MLflow", command, environment, folder / "mlflow.log")
    try:
        service.wait_until_healthy(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        service.stop()


def test_a_cached_stage_makes_no_run_and_the_report_links_the_one_that_made_it(
    client: MlflowClient, finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fakes(monkeypatch, finished["home"].parent)
    before = {run.info.run_id for run in runs_of(client)}
    report = finetune(recipe=fake_recipe(), home=finished["home"], run_id="second")
    parent = parent_of(client, "second")
    assert {run.info.run_id for run in runs_of(client)} - before == {parent.info.run_id}
    made = {entry["stage"]: entry["mlflow_run_id"] for entry in finished["stages"]}
    assert {entry["stage"]: entry["mlflow_run_id"] for entry in report["stages"]} == made
    assert {stage: parent.data.tags[f"stage_run.{stage}"] for stage in STAGES} == made
    assert RESOLVED.items() <= parent.data.params.items()
    assert len(client.search_model_versions("name = 'fake'")) == 1


def test_a_retry_continues_its_run(
    home: Path, orders: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (orders / "sft").write_text("sleep_once:60")
    finetune(recipe=fake_recipe(compute={"timeout_seconds": 2}), home=home)
    run = stage_run(client_of(home), "sft")
    assert run.data.tags["attempts"] == "2"
    history = client_of(home).get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert run.info.status == "FINISHED"


def test_a_stage_that_failed_for_good_is_failed_in_mlflow_with_its_error_and_told_of(
    home: Path, orders: Path, prefect_server: str
) -> None:
    (orders / "sft").write_text("fail:69")
    failing = pytest.raises(Exception, match="asked to fail with 69")
    with saved_webhook() as heard, failing:
        finetune(recipe=fake_recipe(notify=SLUG), home=home, run_id="failed")
    [message] = heard
    assert message["subject"] == "fake: finetune failed"
    assert "asked to fail with 69" in message["body"] and prefect_server[:-4] in message["body"]
    run = stage_run(client_of(home), "sft")
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "asked to fail with 69"
    assert parent_of(client_of(home), "failed").info.status == "FAILED"


def test_mlflow_away_neither_stops_nor_slows_the_run_and_a_later_run_sends_what_was_kept(
    home: Path, orders: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        report = finetune(recipe=fake_recipe(), home=home, run_id="away")
        assert time.monotonic() - started < 20
    assert states(report) == dict.fromkeys(STAGES, "completed")
    assert report["mlflow"]["run_id"] is None
    assert load_report(home, "away")["status"] == "completed"

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    later = finetune(recipe=fake_recipe(), home=home, run_id="back")
    assert states(later) == dict.fromkeys(STAGES, "cached")
    client = client_of(home)
    for entry in later["stages"]:
        run = stage_run(client, entry["stage"])
        assert run.info.run_id == entry["mlflow_run_id"]
    dpo = stage_run(client, "dpo")
    assert len(client.get_metric_history(dpo.info.run_id, "loss")) == 3
    assert RESOLVED.items() <= dpo.data.params.items()
    assert json.loads(sidecar(home, "dpo", later["stages"][3]["key"]).read_text())["done"]
    assert len(client.search_model_versions("name = 'fake'")) == 1


def test_prefect_shows_progress_figures_and_curves_of_each_training_stage_by_recipe(
    finished: dict[str, Any],
) -> None:
    found = asyncio.run(latest_artifacts(finished["prefect"]["flow_run"]))
    for stage in ("sft", "reward", "dpo"):
        shown = {what: found[f"fake-{stage}-{what}"] for what in ("progress", "metrics", "curves")}
        assert float(shown["progress"].data) == 100.0
        [figure] = json.loads(shown["metrics"].data)
        assert figure == {"metric": "accuracy", "value": "50.0%"}
        image = shown["curves"].data
        svg = base64.b64decode(image.rpartition("base64,")[2].rstrip(")")).decode()
        assert "polyline" in svg
        assert "step 3" in svg
        assert all(f"{stage} of fake" in artifact.description for artifact in shown.values())


def test_prefect_mlflow_and_the_report_lead_to_each_other(
    client: MlflowClient, finished: dict[str, Any], prefect_server: str
) -> None:
    flow_run = finished["prefect"]["flow_run"]
    shown = asyncio.run(latest_artifacts(flow_run))["fake-outcome"]
    page = f"{prefect_server.removesuffix('/api')}/runs/flow-run/{flow_run}"
    parent, html = parent_of(client, "first"), finished["home"] / "runs" / "first" / "report.html"
    assert finished["prefect"]["url"] == page
    assert parent.data.tags["prefect.flow_run"] == page
    assert parent.data.tags["report"] == str(html)
    assert parent.data.tags["mlflow.note.content"] == shown.data
    assert page in shown.data and str(html) in shown.data
    assert parent.info.run_id in shown.data and shown.data.startswith("**completed**")
    text = html.read_text()
    assert page in text and parent.info.run_id in text


def test_prefect_links_the_mlflow_run_where_a_server_shows_it(prefect_server: str) -> None:
    from prefect import flow

    from tasks.prefect_artifacts import show_link

    address = "http://mlflow/#/experiments/1/runs/2"
    flow(lambda: show_link("my.recipe", address, "MLflow run"), name="link")()
    found = asyncio.run(latest_artifacts())
    assert address in found["my-recipe-mlflow-run"].data


async def latest_artifacts(flow_run: str | None = None) -> dict[str, Any]:
    """The newest Prefect artifact of each key, of one flow run or of all."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.client.schemas.sorting import ArtifactSort

    of = ArtifactFilterFlowRunId(any_=[flow_run]) if flow_run else None  # type: ignore[list-item]
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=of), sort=ArtifactSort.UPDATED_DESC
        )
    latest: dict[str, Any] = {}
    for artifact in found:
        latest.setdefault(artifact.key, artifact)
    return latest
