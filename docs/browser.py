"""A Chromium without a window, told what to do through a pipe: for pictures, and for tests of pages."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

COMMANDS_IN, REPLIES_OUT = 3, 4
"""Descriptors that Chromium reads and writes with --remote-debugging-pipe."""
HEIGHT = 900
CHROMIUM = "chromium"


class Look(NamedTuple):
    """A page as it was drawn."""

    errors: list[str]
    """What its console says is wrong."""
    facts: Any
    """What the script found that was run in it."""
    png: bytes


class Browser:
    """One process; each `look` is a page of its own."""

    def __init__(self, command: str = CHROMIUM) -> None:
        self._command = shutil.which(command) or command
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        theirs_in, self._to = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._replies = os.fdopen(ours_in, "rb")
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
        arguments = [
            *(self._command, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--hide-scrollbars", f"--user-data-dir={self._profile.name}"),
            "--remote-debugging-pipe",
        ]
        nowhere = os.open(os.devnull, os.O_RDWR)
        placed = zip(
            (nowhere, nowhere, nowhere, *high), (0, 1, 2, COMMANDS_IN, REPLIES_OUT), strict=True
        )
        actions = [(os.POSIX_SPAWN_DUP2, ours, number) for ours, number in placed]
        self._pid = os.posix_spawn(self._command, arguments, os.environ, file_actions=actions)
        for fd in (theirs_in, theirs_out, nowhere, *high):
            os.close(fd)
        return self

    def __exit__(self, *_exception: object) -> None:
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        os.close(self._to)
        self._replies.close()
        self._profile.cleanup()

    def look(
        self,
        page: Path,
        *,
        width: int,
        dark: bool = False,
        script: str = "null",
        draw: bool = True,
    ) -> Look:
        """Draws a page.

        Args:
            page: A file.
            width: Of the window, in CSS pixels.
            dark: Whether the person prefers dark colours.
            script: An expression in the page, whose value is among the result.
            draw: Whether a picture is wanted, of what the window shows first.
        """
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        session = attached["sessionId"]
        self._events.clear()
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable", {}, session)
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", size, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]}, session)
        self._call("Page.navigate", {"url": page.absolute().as_uri()}, session)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        asked = {"expression": script, "returnByValue": True}
        found = self._call("Runtime.evaluate", asked, session)["result"].get("value")
        picture = self._call("Page.captureScreenshot", {}, session) if draw else {"data": ""}
        errors = [text for event in self._events if (text := _error_in(event))]
        self._call("Target.closeTarget", {"targetId": target})
        return Look(errors, found, base64.b64decode(picture["data"]))

    def _call(
        self, method: str, params: Mapping[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (reply := self._read()).get("id") != self._number:
            continue
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def _read(self) -> dict[str, Any]:
        """The next message, which is kept if it is an event."""
        written = bytearray()
        while (byte := self._replies.read(1)) != b"\0":
            if not byte:
                raise RuntimeError(f"{self._command} ended")
            written += byte
        message: dict[str, Any] = json.loads(written)
        if "method" in message:
            self._events.append(message)
        return message


def _error_in(event: Mapping[str, Any]) -> str | None:
    """What an event says is wrong with the page."""
    params = event.get("params", {})
    match event["method"]:
        case "Runtime.exceptionThrown":
            return str(params["exceptionDetails"]["text"])
        case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
            return str(params["args"])
        case "Log.entryAdded" if params["entry"]["level"] == "error":
            return str(params["entry"]["text"])
    return None
