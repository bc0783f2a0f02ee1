"""Runs the flow on fake stages; the process that tests kill."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from fake_runs import fake_recipe

from alignflow.pipeline import retries
from alignflow.stages import forkserver
from flows.finetune import finetune

if __name__ == "__main__":
    retries.FIRST_DELAY_SECONDS = 0.0
    forkserver.Forkserver = partial(forkserver.Forkserver, preload=("fake_stages",))  # type: ignore[assignment, misc]
    finetune(recipe=fake_recipe(), home=Path(sys.argv[1]))
