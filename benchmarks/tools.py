"""What `quickstart-tools.yaml` learns of function calling, over paired seeds.

    python benchmarks/tools.py [--seeds 3] [--home DIR]

As `benchmarks/quickstart.py`: each seed draws its own demonstrations, data order and samples; settings
were chosen on `builtin:freight-tools-development`, never on the test prompts. *No call at all* is the
share of the test prompts that want none, which a model gets that only refuses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from quickstart import percent, run

from alignflow.builtin import rows

RECIPE = Path(__file__).parent.parent / "deployments/recipes/quickstart-tools.yaml"
FIGURES = ("accuracy", "sampled_accuracy", "paraphrase_accuracy")


def no_call(group: str) -> float:
    """Share of a group's test prompts that want no call."""
    wanted = [
        json.loads(row["target"])
        for row in rows("freight-tools-evaluation")
        if row["group"] == group
    ]
    return sum(not calls for calls in wanted) / len(wanted)


def table(reports: list[dict[str, Any]]) -> str:
    """The table of docs/quickstart.md, in Markdown."""
    test, paraphrase = (f"{100 * no_call(group):.1f}" for group in ("test", "paraphrase"))
    lines = [
        "| | calls right (greedy) | sampled, T=1 | paraphrases |",
        "|---|---|---|---|",
        f"| no call at all | {test} | {test} | {paraphrase} |",
    ]
    for model in ("base", "sft", "aligned", "merged"):
        cells = [
            percent([report["evaluation"][model][figure] for report in reports])
            for figure in FIGURES
        ]
        lines.append(f"| {' | '.join((model, *cells))} |")
    for figure in FIGURES[:2]:
        gains = [
            report["evaluation"]["aligned"][figure] - report["evaluation"]["sft"][figure]
            for report in reports
        ]
        lines.append(f"\nAligned over SFT, {figure}: {percent(gains)} points.")
    seconds = statistics.median(report["seconds"] for report in reports)
    lines.append(f"\nSeconds of a run, median: {seconds:.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignflow-tools-") as temporary:
        home = arguments.home or Path(temporary)
        print(table([run(home, seed, recipe=RECIPE) for seed in range(arguments.seeds)]))


if __name__ == "__main__":
    main()
