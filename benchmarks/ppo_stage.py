"""One stage of a recipe in this process: `python ppo_stage.py RECIPE HOME STAGE`.

Prints JSON: the process's peak memory in MiB, that before the stage, and the stage's seconds from
its first progress to its last. For `benchmarks/ppo.py`, whose model of random weights has a reward
model that passes no gate; the gate is left out here.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from alignflow.pipeline import stage_spec
from alignflow.recipe import load_recipe
from alignflow.stages import (
    EventWriter,
    find,
    load_stage,
    publish,
    read_events,
    set_threads,
    work_directory,
)


def memory_mib(field: str) -> int:
    """A figure of this process from the kernel: VmHWM is the peak, VmRSS what is resident now."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]


def main() -> None:
    recipe, home, wanted = load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    artifacts = {}
    for stage in recipe.stages:
        spec = stage_spec(recipe, stage, home, artifacts)
        if stage == wanted:
            break
        found = find(home, stage, spec.key)
        assert found is not None, stage
        artifacts[stage] = found
    run = load_stage(wanted)
    if wanted == "ppo":
        from alignflow.training.methods import ppo

        ppo.demand_good_reward = lambda *_: None
    set_threads(recipe.compute.threads)
    work = work_directory(home, wanted, spec.key)
    (work / "output").mkdir(parents=True, exist_ok=True)
    before = memory_mib("VmRSS")
    result = run(spec, work, EventWriter(work / "events.jsonl", 1))
    peak = memory_mib("VmHWM")
    times = [e["time"] for e in read_events(work / "events.jsonl") if e["kind"] == "progress"]
    publish(spec, result, times[-1] - times[0], 1)
    print(json.dumps({"peak": peak, "before": before, "seconds": times[-1] - times[0]}))


if __name__ == "__main__":
    main()
