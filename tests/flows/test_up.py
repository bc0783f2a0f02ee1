"""`alignflow up` for real: from a file in the inbox to a champion, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FAKE_STAGES, RUN_FLOW, wait_until
from ledger_cases import row, write
from retrain_cases import MODEL, aliases, head, retrain_recipe, served, where

from alignflow.commands.cli import exit_code_of
from alignflow.commands.up import ROOT, mlflow_command
from alignflow.ledger import champion, renew_holdout

CANARY = "canary-0f3a9c"
SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "ALIGNFLOW_JUDGE_KEY",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def start_up(
    home: Path, recipe: Path, orders: Path, ports: tuple[int, int]
) -> subprocess.Popen[str]:
    taken_out = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "ALIGNFLOW_LEDGER_URL")
    kept = {name: value for name, value in os.environ.items() if name not in taken_out}
    fakes = RUN_FLOW.parent
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "alignflow.commands.cli", "up", "--home", str(home)),
            *("--recipe", str(recipe)),
            *("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])),
        ],
        env={
            **kept,
            **dict.fromkeys(SECRETS, CANARY),
            "ALIGNFLOW_TEST_STAGES": json.dumps(FAKE_STAGES),
            "FAKE_ORDERS": str(orders),
            "PYTHONPATH": f"{ROOT}:{fakes / 'quick'}:{fakes}",
            "PYTHONUNBUFFERED": "1",
        },
        cwd=home.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def processes_with(text: str) -> list[str]:
    """Commands of the processes that have a text in their environment or command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if text.encode() in words and state != "Z" and int(folder.name) != os.getpid():
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read()


def post(address: str, body: dict[str, Any]) -> Any:
    """Asks again where SQLite was busy, which Prefect's server answers with 503, as its client does."""
    content = {"Content-Type": "application/json"}
    for left in reversed(range(5)):
        request = urllib.request.Request(address, json.dumps(body).encode(), content)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or not left:
                raise
            time.sleep(1)
    return None


def retrains(api: str, state: str) -> list[dict[str, Any]]:
    """Runs of `retrain` that are in a state."""
    runs = post(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}})
    return [run for run in runs if run["state_name"] == state]


@pytest.mark.timeout(500)
def test_a_file_in_the_inbox_ends_in_a_question_a_yes_in_a_champion_and_ctrl_c_leaves_no_process(
    home: Path, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    orders = tmp_path / "orders"
    orders.mkdir()
    (orders / "quality").write_text("0.8")
    recipe = tmp_path / "recipe.yaml"
    wanted = retrain_recipe(approval="required").model_dump(mode="json", exclude_unset=True)
    recipe.write_text(json.dumps(wanted))
    renew_holdout(home, 0.0)
    dropped = write(home / "inbox" / "a.jsonl", [row(number) for number in range(30)])
    os.utime(dropped, (0, 1_700_000_000))
    ports = free_port(), free_port()
    api = f"http://127.0.0.1:{ports[0]}/api"
    process = start_up(home, recipe, orders, ports)
    try:
        assert process.stdout is not None
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        assert f"Prefect   http://127.0.0.1:{ports[0]}\n" in lines
        assert b"<title>Prefect" in get(f"http://127.0.0.1:{ports[0]}/")
        assert b"MLflow" in get(f"http://127.0.0.1:{ports[1]}/")
        wait_until(lambda: bool(retrains(api, "Suspended")), 240, every=0.5)
        [run] = retrains(api, "Suspended")
        assert run["parameters"]["reason"] == "preferences", "the automation started it"
        assert head(home) == 0 and where(home) == (0, 30, 0)
        assert aliases(home) == {"candidate": "2", "champion": "1"}, "generation 0 serves meanwhile"
        wait_until(lambda: processes_with(run["id"]) == [], 60, every=0.5)
        answer = {"promote": True, "name": "Ada", "reason": "read twenty answers"}
        post(f"{api}/flow_runs/{run['id']}/resume", {"run_input": answer})
        wait_until(lambda: bool(retrains(api, "Promoted")), 240, every=0.5)
        assert [done["id"] for done in retrains(api, "Promoted")] == [run["id"]]
        [promoted] = retrains(api, "Promoted")
        assert promoted["name"] == f"{MODEL} gen 1 candidate"
        shown = post(f"{api}/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        links = {entry["key"]: entry["data"] for entry in shown if "mlflow" in entry["key"]}
        assert all(
            f"(http://127.0.0.1:{ports[1]}/#/experiments/" in link for link in links.values()
        )
        assert set(links) == {f"{MODEL}-mlflow-run", f"{MODEL}-mlflow-table"}
        assert head(home) == 1 and where(home) == (0, 0, 30)
        current = champion(home, MODEL)
        assert current is not None and served(home) == current.digest
        snapshot = current.snapshot
    finally:
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert processes_with(str(home)) == []
    assert time.monotonic() - began < 90
    assert CANARY not in "".join(lines) + rest
    for path in home.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    [view] = re.findall(r"viewStateShareKey=(\w+)", links[f"{MODEL}-mlflow-table"])
    columns = json.loads(experiment.tags[f"mlflow.sharedViewState.{view}"])["selectedColumns"]
    assert {"params.`lora_rank`", "params.`lora_alpha`", "params.`lora_target_modules`"} <= {
        *columns
    }
    assert "View run" not in (home / "up" / "worker.log").read_text(), "MLflow says nothing"
    [prepare] = client.search_runs([experiment.experiment_id], "tags.stage = 'prepare'")
    data = {entry.dataset.name: entry.dataset for entry in prepare.inputs.dataset_inputs}
    known = data[f"ledger:default@{snapshot}"]
    assert json.loads(known.profile) == {"num_rows": 30}
    assert snapshot is not None and snapshot.endswith(known.digest)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "192.168.1.2"])
def test_other_machines_are_kept_out_without_passwords(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    assert exit_code_of(["up", "--host", host, "--home", str(tmp_path / "home")]) == 64
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
    assert "basic-auth" in mlflow_command(host, 5000, tmp_path)
    assert "basic-auth" not in mlflow_command("127.0.0.1", 5000, tmp_path)


def test_a_port_in_use_and_a_bad_recipe_are_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALIGNFLOW_HOME", "ALIGNFLOW_RECIPE", "ALIGNFLOW_INBOX"):
        monkeypatch.setenv(name, "restored")  # `up` sets them for this process too
    home = ("--home", str(tmp_path / "home"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: BAD\n")
    monkeypatch.delenv("ALIGNFLOW_INBOX")
    assert exit_code_of(["up", "--recipe", str(bad), *home]) == 64
    assert "bad.yaml:1" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code_of(["up", "--prefect-port", str(port), *home]) == 64
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err
