"""A process that has imported the training libraries and forks stages in milliseconds.

It starts in the background with the flow, so that seven seconds of imports overlap `prepare`, and
ends with the flow. It never touches CUDA: should a library have initialized it while being
imported, the server says so and stages start afresh instead. Threads are set after the fork.

Protocol, JSON lines over a socket pair: `{"work", "attempt", "environment"}` asks for a stage;
`{"ready"}` or `{"unfit": reason}`, `{"forked": pid}` and `{"ended": pid, "code"}` come back.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alignflow.errors import StageError
from alignflow.stages.environment import stage_environment
from alignflow.stages.process import run_and_exit, start_module, wait_for_death

PRELOAD = ("torch", "transformers", "peft", "trl")
PRELOAD_NAMES = (
    "transformers.AutoModelForCausalLM",
    "transformers.AutoTokenizer",
    "transformers.Trainer",
    "transformers.LlamaForCausalLM",
    "trl.SFTTrainer",
    "trl.RewardTrainer",
    "trl.DPOTrainer",
)
POLL_SECONDS = 0.02


class ForkserverGone(Exception):
    """The server does not serve: it ended, or it is unfit for this machine."""


class ForkedStage:
    """A stage's process that the forkserver forked."""

    def __init__(self, server: Forkserver, pid: int) -> None:
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._server.exit_code(self.pid)


class Forkserver:
    """The flow's end of the line to the server's process."""

    def __init__(self, preload: tuple[str, ...] = PRELOAD) -> None:
        ours, theirs = socket.socketpair()
        environment = stage_environment("forkserver", offline=True)
        # Asks the driver's library about devices without opening them.
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        self._process = start_module(
            "alignflow.stages.forkserver",
            [theirs.fileno(), os.getpid(), ",".join(preload)],
            environment,
            Path(os.devnull),
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._socket = ours
        self._lock = threading.RLock()
        self._rest = b""
        self._forked: list[int] = []
        self._codes: dict[int, int] = {}
        self._unfit: str | None = None
        self.ready = False

    @property
    def serving(self) -> bool:
        """Whether stages can be asked for."""
        with self._lock:
            self._read(0)
            return self._unfit is None

    def fork(self, work: Path, attempt: int, environment: dict[str, str]) -> ForkedStage:
        """Starts a stage; waits for the imports if they are not done.

        Raises:
            ForkserverGone: It cannot serve.
        """
        request = {"work": str(work), "attempt": attempt, "environment": environment}
        with self._lock:
            if not self.serving:
                raise ForkserverGone(self._unfit)
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError as error:
                raise ForkserverGone(str(error)) from error
            while not self._forked:
                self._read(1.0)
                if self._unfit is not None:
                    raise ForkserverGone(self._unfit)
            return ForkedStage(self, self._forked.pop())

    def exit_code(self, pid: int) -> int | None:
        """Exit code of a forked stage; that of a kill when the server has gone."""
        with self._lock:
            self._read(0)
            if pid in self._codes:
                return self._codes[pid]
            return -signal.SIGKILL if self._unfit is not None else None

    def _read(self, timeout_seconds: float) -> None:
        while self._unfit is None and select.select([self._socket], [], [], timeout_seconds)[0]:
            try:
                content = self._socket.recv(65536)
            except OSError:
                content = b""
            if not content:
                self._unfit = "the forkserver ended"
                return
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            timeout_seconds = 0

    def _hear(self, reply: dict[str, Any]) -> None:
        if "forked" in reply:
            self._forked.append(reply["forked"])
        elif "ended" in reply:
            self._codes[reply["ended"]] = reply["code"]
        elif "ready" in reply:
            self.ready = True
        elif "unfit" in reply:
            self._unfit = reply["unfit"]

    def close(self) -> None:
        """Ends the server and whatever it forked."""
        self._socket.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:  # still importing
            self._process.kill()
            self._process.wait()


_current: Forkserver | None = None


def current() -> Forkserver | None:
    """The forkserver of the flow that runs in this process."""
    return _current


def ensure() -> Forkserver:
    """The forkserver of this process, started now if there is none that serves."""
    global _current
    if _current is not None and not _current.serving:
        _current.close()
        _current = None
    if _current is None:
        _current = Forkserver()
    return _current


@contextmanager
def ended_after() -> Generator[None]:
    """Ends the forkserver that the block started, if it did."""
    global _current
    try:
        yield
    finally:
        server, _current = _current, None
        if server is not None:
            server.close()


def main() -> None:
    """The server's process."""
    descriptor, flow_pid, modules = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    threading.Thread(target=_end_with, args=(flow_pid,), daemon=True).start()
    line = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    if reason := preload([name for name in modules if name]):
        _say(line, unfit=reason)
        return
    _say(line, ready=True)
    serve(line, flow_pid)


def _end_with(flow_pid: int) -> None:
    """While it imports the server reads no socket, so a thread watches the flow for it."""
    wait_for_death(flow_pid)
    os._exit(0)


def preload(modules: list[str]) -> str | None:
    """Imports `modules` and what stages take from them; returns why forking would be unsafe."""
    for name in modules:
        importlib.import_module(name)
    for dotted in PRELOAD_NAMES:
        module, _, attribute = dotted.partition(".")
        if module in modules:
            with suppress(Exception):
                getattr(importlib.import_module(module), attribute)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "a library initialized CUDA while being imported"
    gc.freeze()  # keeps the imported modules' pages shared after a fork
    return None


def serve(line: socket.socket, flow_pid: int) -> None:
    """Forks a stage per request until the flow hangs up; then kills what still runs."""
    children: set[int] = set()
    rest = b""
    while True:
        if select.select([line], [], [], POLL_SECONDS if children else None)[0]:
            content = line.recv(65536)
            if not content:
                break
            *requests, rest = (rest + content).split(b"\n")
            for request in requests:
                pid = _fork(json.loads(request), line, flow_pid)
                children.add(pid)
                _say(line, forked=pid)
        for pid, code in _ended(children):
            children.discard(pid)
            _say(line, ended=pid, code=code)
    for pid in children:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _fork(request: dict[str, Any], line: socket.socket, flow_pid: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            line.close()
            os.environ.clear()
            os.environ.update(request["environment"])
            run_and_exit(Path(request["work"]), request["attempt"], flow_pid)
        finally:
            os._exit(StageError.exit_code)  # never back into the server's loop
    return pid


def _ended(children: set[int]) -> Iterator[tuple[int, int]]:
    for pid in tuple(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            yield pid, os.waitstatus_to_exitcode(status)


def _say(line: socket.socket, **reply: Any) -> None:
    line.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
