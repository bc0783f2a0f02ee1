"""Named points at which a test makes the process die or fail. No-ops outside of tests.

`ALIGNFLOW_FAULT=name:n:kind` acts at the n-th pass of the point `name`; `kind` is `kill` (SIGKILL),
`raise` or `enospc`.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "ALIGNFLOW_FAULT"
_passed: Counter[str] = Counter()


class InjectedFault(Exception):
    """What `raise` raises."""


def faultpoint(name: str) -> None:
    """Does nothing, unless the environment names this point."""
    order = os.environ.get(VARIABLE)
    if order is None:
        return
    wanted, number, kind = order.rsplit(":", 2)
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(number):
        _act(name, kind)


def _act(name: str, kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    raise InjectedFault(name)
