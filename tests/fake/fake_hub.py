"""A Hub on this machine: repositories, LFS and commits as the client of huggingface_hub asks for them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_writes"


def hub_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Has the client ask this address."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=address))


class FakeHub(ThreadingHTTPServer):
    """Takes what TOKEN sends; anybody may read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, Any]] = {}
        """Name to `private` and `files`: name to content."""
        self.stored: dict[str, bytes] = {}
        """LFS objects by sha256."""
        self.failing: list[str] = []
        """Beginnings of `METHOD path` that answer 503, once for each time that they are listed."""
        self.asked: list[str] = []
        """`METHOD path`, in order."""


class Handler(BaseHTTPRequestHandler):
    """The few places of the Hub's API that a push asks for."""

    server: FakeHub

    def do_POST(self) -> None:
        self.handled("POST")

    def do_PUT(self) -> None:
        self.handled("PUT")

    def do_GET(self) -> None:
        self.handled("GET")

    def handled(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{method} {self.path}"
        self.server.asked.append(asked)
        failing = next((start for start in self.server.failing if asked.startswith(start)), None)
        if failing:
            self.server.failing.remove(failing)
            return self.answered(503, {"error": "busy"})
        told = self.headers.get("Authorization")
        if method == "POST" and "validate" not in self.path and told != f"Bearer {TOKEN}":
            return self.answered(403 if told else 401, {"error": "no"})
        return self.answered(*self.answer(method, body))

    def answer(self, method: str, body: bytes) -> tuple[int, Any]:
        hub, path = self.server, self.path
        if method == "PUT":
            digest = hashlib.sha256(body).hexdigest()
            hub.stored[digest] = body
            return (200, {}) if path.endswith(digest) else (400, {})
        if path == "/api/validate-yaml":
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in hub.repositories
            private = asked.get("visibility") == "private"
            hub.repositories.setdefault(name, {"private": private, "files": {}})
            return 409 if known else 200, {"url": f"{hub.address}/{name}"}
        if found := re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(\.git)?(/.*)?", path):
            return self.of_repository(found[1], found[3] or "", body)
        return 404, {}

    def of_repository(self, name: str, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.server
        if name not in hub.repositories:
            return 404, {}
        repository = hub.repositories[name]
        if path == "":
            return 200, {"id": name, "private": repository["private"], "siblings": []}
        if path == "/preupload/main":
            files = [entry["path"] for entry in json.loads(body)["files"]]
            return 200, {"files": [self.mode(file) for file in files]}
        if path == "/info/lfs/objects/batch":
            return 200, {"objects": [self.action(entry) for entry in json.loads(body)["objects"]]}
        if path == "/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository["files"][value["path"]] = hub.stored[value["oid"]]
            url = f"{hub.address}/{name}/commit/{'a' * 40}"
            return 200, {"commitOid": "a" * 40, "commitUrl": url, "hookOutput": ""}
        return 404, {}

    @staticmethod
    def mode(file: str) -> dict[str, Any]:
        large = file.endswith((".safetensors", "tokenizer.json"))
        return {"path": file, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def action(self, entry: dict[str, Any]) -> dict[str, Any]:
        known = entry["oid"] in self.server.stored
        upload = {"href": f"{self.server.address}/lfs/{entry['oid']}"}
        return entry if known else {**entry, "actions": {"upload": upload}}

    def answered(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub that the client asks, by its LFS protocol; its waits between attempts are left out."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub_at(monkeypatch, server.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
