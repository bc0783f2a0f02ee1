"""What a busy machine costs: the quickstart alone, and beside endless loops on every core.

    python benchmarks/busy.py [--home DIR] [--loops N]

Loops have the priority of the run. Threads of OpenMP that wait must sleep: spinning, they take the
cores that the threads they wait for need. For comparison, OMP_WAIT_POLICY=ACTIVE puts them back.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from quickstart import run


def seconds(report: dict[str, Any]) -> dict[str, float]:
    return {entry["stage"]: entry["seconds"] for entry in report["stages"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--loops", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    home = arguments.home or Path(tempfile.mkdtemp(prefix="alignflow-busy-"))
    alone = seconds(run(home / "alone", 0))
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.loops)
    ]
    try:
        beside = seconds(run(home / "beside", 0))
    finally:
        for loop in loops:
            loop.kill()
    print(f"{'stage':<10}{'alone':>9}{'beside ' + str(len(loops)):>11}{'ratio':>8}")
    for name in [*alone, "all"]:
        one, other = (
            sum(each.values()) if name == "all" else each[name] for each in (alone, beside)
        )
        print(f"{name:<10}{one:>7.1f} s{other:>9.1f} s{other / one:>8.2f}")


if __name__ == "__main__":
    main()
