"""What a run costs beside its stages: seconds to its first line, and before and after its stages.

    python benchmarks/startup.py [--runs 3] [--max-steps 4]

The quickstart's recipe with a few steps a stage, since steps are not what is measured: each time in a
fresh home, files warm. Then once more in the last home, where all is cached. Idle cores, or the
figures are others'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "deployments/recipes/quickstart.yaml"


def run(home: Path, max_steps: int) -> dict[str, float]:
    """Seconds of one `alignflow run`: to its first line, in its stages, beside them, in all."""
    cut = [f"{stage}.max_steps={max_steps}" for stage in ("sft", "reward", "dpo")]
    settings = [part for setting in cut for part in ("--set", setting)]
    command = [sys.executable, "-m", "alignflow.commands.cli", "run", str(RECIPE), *settings]
    begun = time.perf_counter()
    with subprocess.Popen(
        [*command, "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        first = time.perf_counter() - begun
        rest = child.stdout.read()
    whole = time.perf_counter() - begun
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{rest}")
    report = json.loads((home / "latest" / "report.json").read_text())
    stages = sum(stage["seconds"] for stage in report["stages"])
    return {"first line": first, "stages": stages, "beside": whole - stages, "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder) / str(number) for number in range(asked.runs)]
        fresh = [run(home, asked.max_steps) for home in homes]
        cached = run(homes[-1], asked.max_steps)
    print("| seconds | first line | stages | beside them | whole |\n|---|---|---|---|---|")
    medians = {name: statistics.median(one[name] for one in fresh) for name in cached}
    for label, row in ((f"fresh home, median of {asked.runs}", medians), ("all cached", cached)):
        print(f"| {label} | {' | '.join(f'{value:.1f}' for value in row.values())} |")


if __name__ == "__main__":
    main()
