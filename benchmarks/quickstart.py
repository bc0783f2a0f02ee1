"""What the quickstart learns, over paired seeds, with controls.

    python benchmarks/quickstart.py [--seeds 5] [--home DIR] [--json FILE]

Each seed draws its own demonstrations, data order, initialization and samples; the test prompts
stay the same and were never used to choose a setting. Controls, from the same SFT model:

- *chosen only*: the same updates on the chosen answers alone (DPO's loss replaced by its SFT term);
- *sharpened*: SFT sampled at the temperature at which its entropy equals the aligned model's.

Intervals are 95 % t intervals over seeds; differences are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parent.parent / "deployments/recipes/quickstart.yaml"
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(home: Path, seed: int, *overrides: str, recipe: Path = RECIPE) -> dict[str, Any]:
    """Report of one `alignflow run`, in a process of its own."""
    settings = [argument for override in overrides for argument in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "alignflow.commands.cli",
        "run",
        str(recipe),
        "--home",
        str(home),
        "--json",
        "--set",
        f"seed={seed}",
        *settings,
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)}\n{finished.stderr[-4000:]}")
    return json.loads(finished.stdout)


def stage(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in report["stages"] if entry["stage"] == name)


def measure_seed(home: Path, seed: int) -> dict[str, Any]:
    """Every figure of one seed: the pipeline's and both controls'."""
    report = run(home, seed)
    control = run(home, seed, "dpo.loss_type=[sft]", "dpo.loss_weights=null", "merge=null")
    figures = {
        f"{model} {metric}": value
        for model, metrics in report["evaluation"].items()
        for metric, value in metrics.items()
        if value is not None
    }
    for metric, value in control["evaluation"]["aligned"].items():
        if value is not None:
            figures[f"chosen only {metric}"] = value
    figures["reward preference_accuracy"] = stage(report, "reward")["metrics"][
        "preference_accuracy"
    ]
    figures.update(sharpened(report))
    figures["seconds"] = report["seconds"]
    for entry in report["stages"]:
        figures[f"seconds {entry['stage']}"] = entry["seconds"]
    return figures


def sharpened(report: dict[str, Any]) -> dict[str, float]:
    """Accuracy of SFT sampled at the temperature that matches the aligned model's entropy."""
    from sharpening import accuracy_at_matched_entropy

    return accuracy_at_matched_entropy(
        prepare=Path(stage(report, "prepare")["artifact"]),
        sft=Path(stage(report, "sft")["artifact"]),
        aligned=Path(stage(report, "dpo")["artifact"]),
    )


def mean_and_margin(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t interval."""
    if len(values) < 2:
        return values[0], math.nan
    margin = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), margin


def percent(values: list[float]) -> str:
    mean, margin = mean_and_margin(values)
    return f"{100 * mean:.1f} ± {100 * margin:.1f}"


def table(seeds: list[dict[str, Any]]) -> str:
    """The table of the README, in Markdown."""

    def column(name: str) -> list[float]:
        return [figures[name] for figures in seeds]

    def difference(first: str, second: str) -> list[float]:
        return [a - b for a, b in zip(column(first), column(second), strict=True)]

    rows = [("", "accuracy (greedy)", "accuracy (sampled, T=1)", "unsafe", "paraphrases")]
    for model in ("base", "sft", "aligned", "merged", "chosen only"):
        rows.append(
            (
                model,
                *(
                    percent(column(f"{model} {metric}")) if f"{model} {metric}" in seeds[0] else ""
                    for metric in (
                        "accuracy",
                        "sampled_accuracy",
                        "unsafe_rate",
                        "paraphrase_accuracy",
                    )
                ),
            )
        )
    rows.append(
        (
            "sharpened SFT",
            "",
            percent(column("sharpened sampled_accuracy")),
            percent(column("sharpened unsafe_rate")),
            "",
        )
    )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    lines += ["", "Paired differences, percentage points:", ""]
    for label, first, second in (
        ("aligned over SFT, greedy", "aligned accuracy", "sft accuracy"),
        ("aligned over SFT, sampled", "aligned sampled_accuracy", "sft sampled_accuracy"),
        ("aligned over chosen only, greedy", "aligned accuracy", "chosen only accuracy"),
        (
            "aligned over chosen only, sampled",
            "aligned sampled_accuracy",
            "chosen only sampled_accuracy",
        ),
        (
            "aligned over sharpened SFT, sampled",
            "aligned sampled_accuracy",
            "sharpened sampled_accuracy",
        ),
    ):
        lines.append(f"- {label}: {percent(difference(first, second))}")
    lines.append(
        f"- reward model on held-out pairs: {percent(column('reward preference_accuracy'))}"
    )
    seconds = [name for name in seeds[0] if name.startswith("seconds")]
    lines += [
        "",
        "Seconds: "
        + ", ".join(
            f"{name.removeprefix('seconds').strip() or 'whole run'} {statistics.median(column(name)):.1f}"
            for name in seconds
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    parser.add_argument("--json", type=Path, help="write every figure of every seed here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignflow-quickstart-") as temporary:
        home = arguments.home or Path(temporary)
        seeds = []
        for seed in range(arguments.seeds):
            seeds.append(measure_seed(home / f"seed-{seed}", seed))
            print(f"seed {seed}: {json.dumps(seeds[-1])}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(seeds, indent=2) + "\n")
    print(table(seeds))


if __name__ == "__main__":
    main()
