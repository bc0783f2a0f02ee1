"""Running what a stranger wrote (a chat template, rows of any size) in a child with limits.

python -m alignflow.checking.sandbox alignflow.checking.template:probe  < payload.json  > result.json
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
from typing import Any

from alignflow.errors import BY_EXIT_CODE, AlignflowError, DataError

GIB = 1024**3
WALL_PER_PROCESSOR_SECOND = 6
"""A child that waits for a core, not one that waits for ever, is let go on."""


def run_limited(task: str, payload: Any, *, seconds: float, memory_bytes: int, what: str) -> Any:
    """Result of a function of JSON to JSON, in a child that may neither run nor grow for ever.

    Args:
        task: `module:function`.
        payload: Its only argument.
        seconds: Processor time that it may take, starting Python included; on a busy machine
            that is more of the wall's.
        memory_bytes: Address space that it may take.
        what: Names the work in messages.

    Raises:
        AlignflowError: The function raised one, or went over a limit (a DataError).
    """
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__, task, str(math.ceil(seconds)), str(memory_bytes)],
            input=json.dumps(payload),
            capture_output=True,
            text=True,
            timeout=seconds * WALL_PER_PROCESSOR_SECOND,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _endless(what, seconds) from error
    if child.returncode == -signal.SIGXCPU:
        raise _endless(what, seconds)
    if child.returncode in BY_EXIT_CODE:
        raise BY_EXIT_CODE[child.returncode](json.loads(child.stdout))
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"{what} ended with {child.returncode} ({last[:300]}); it may take "
            f"{memory_bytes / GIB:g} GiB. It is not safe to use."
        )
    return json.loads(child.stdout)


def _endless(what: str, seconds: float) -> DataError:
    return DataError(f"{what} did not end within {seconds:g} s. It is not safe to use.")


def _main() -> int:
    task, seconds, memory_bytes = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, function = task.partition(":")
    payload = json.load(sys.stdin)
    try:
        result = getattr(importlib.import_module(module), function)(payload)
    except AlignflowError as error:
        json.dump(error.message, sys.stdout)  # stderr has what libraries say besides
        return error.exit_code
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
