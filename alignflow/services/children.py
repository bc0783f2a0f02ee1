"""Processes that run until a person ends them, together: none is left behind.

Each is the head of a process group of its own, so that Ctrl-C reaches only us, and a guard ends the
group should we be killed. What its members leave behind becomes our child and is ended too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from alignflow.errors import RecipeError, StageError
from alignflow.stages import die_with, start_module

PR_SET_CHILD_SUBREAPER = 36
START_SECONDS = 300.0
STOP_SECONDS = 15.0
LOG_LINES = 15


class Service:
    """One process and the group that it heads."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        guarded = [os.getpid(), *command]
        self._process = start_module("alignflow.services.children", guarded, environment, log)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait_until_healthy(self, address: str) -> None:
        """Returns once `address` answers.

        Raises:
            StageError: The process ended, or does not answer.
        """
        if not answers(self._process, address):
            raise self.failure()

    def wait_until_done(self) -> None:
        """Returns once the process has ended well.

        Raises:
            StageError: It failed.
        """
        if self._process.wait() != 0:
            raise self.failure()

    def failure(self) -> StageError:
        """What is said of its end, with the last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        ended = "does not answer" if self.exit_code is None else f"ended with {self.exit_code}"
        return StageError("\n".join([f"{self.name} {ended} (log: {self.log}):", *lines]))

    def stop(self) -> None:
        """Asks the whole group to end, and ends it if it does not."""
        end_group(self._process)


def answers(process: subprocess.Popen[bytes], address: str) -> bool:
    """Waits for a server: whether `address` answers in time, before its process ends."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return True
        except OSError:  # urllib's are too
            time.sleep(0.1)
    return False


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Asks the group that a process heads to end, and ends it if it does not."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


@contextmanager
def ended_together() -> Iterator[list[Service]]:
    """Services that are appended to the list are ended with the block, the last one first."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    services: list[Service] = []
    try:
        yield services
    finally:
        for service in reversed(services):
            service.stop()
        end_children()


def end_children() -> None:
    """Ends every process that descends from this one."""
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)  # ours to reap, so the number is not another's
        for child in children:
            os.waitpid(child, 0)


def _children() -> list[int]:
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children: list[int] = []
    for path in lists:
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            children += map(int, path.read_text().split())
    return children


def demand_free(host: str, port: int, option: str) -> None:
    """Checks that a port can be listened on.

    Raises:
        RecipeError: It cannot.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return
    except OSError as error:
        raise RecipeError(
            f"{host}:{port} cannot be listened on ({error.strerror}). Give another port with "
            f"{option}, or end what uses it."
        ) from error


if __name__ == "__main__":  # becomes the command; a guard ends its group once our starter is gone
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
