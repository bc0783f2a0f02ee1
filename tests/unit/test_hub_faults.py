"""What the Hub, a proxy or a server does not give: our error with its remedy, by real answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_hub import hub_at

from alignflow.data import fetch_base
from alignflow.errors import AlignflowError, RecipeError, StageError
from alignflow.machine import asking_hub, fault_of
from alignflow.recipe import hub_commit
from alignflow.stages import ResolvedModel

COMMIT = "1" * 40


class Answering(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has the Hub's address answer everything with a status."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield lambda status: setattr(Answering, "status", status)
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return line.getsockname()[1]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, RecipeError, "answers 401: .*or it is private and HF_TOKEN is not set"),
        (404, RecipeError, "answers 404: there is no such repository or revision"),
        (403, RecipeError, "answers 403: .*Ask for access on the page"),
        (407, RecipeError, "the proxy wants credentials"),
        (429, StageError, "429, too many requests.*Wait some minutes, or set HF_TOKEN"),
        (503, StageError, "answers 503 .*Run again later"),
    ],
)
def test_each_answer_of_the_hub_has_its_remedy(
    status: int,
    kind: type[AlignflowError],
    said: str,
    answering: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    answering(status)
    with pytest.raises(kind, match=f"'o/m' .*{said}"):
        hub_commit("o/m", "main", "model")


def test_a_token_that_is_refused_is_said(
    answering: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    answering(403)
    with pytest.raises(RecipeError, match="HF_TOKEN was refused or may not read it"):
        hub_commit("o/d", None, "dataset")


def test_a_hub_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_at(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(StageError, match=r"cannot be reached: ConnectError.*HTTPS_PROXY") as raised:
        hub_commit("o/m", None, "model")
    assert raised.value.retried and raised.value.exit_code == 70


def test_a_proxy_that_is_in_force_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_at(monkeypatch, "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(StageError, match="through the proxy of HTTP_PROXY"):
        raise_as_ours()


def raise_as_ours() -> None:
    import httpx

    with asking_hub("base_model: o/m"):
        httpx.get("http://hub.invalid/api/models/o/m")


def test_a_model_that_is_not_in_the_cache_while_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match=r"base_model: o/m at 1+: .*HF_HUB_OFFLINE forbids"):
        fetch_base(ResolvedModel(source="o/m", digest=COMMIT), None, tmp_path)


def test_a_setting_that_names_a_dead_server_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    address = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(requests.ConnectionError) as raised:
        requests.get(f"{address}/api/2.0/mlflow/experiments/search", timeout=5)
    fault = fault_of(raised.value)
    assert isinstance(fault, StageError)
    assert f"MLFLOW_TRACKING_URI {address} cannot be reached" in fault.message


def test_a_mistake_in_a_handler_is_not_called_a_fault_of_the_machine() -> None:
    def mistaken() -> None:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError:
            {}["absent"]

    with pytest.raises(KeyError) as raised:
        mistaken()
    assert fault_of(raised.value) is None
