"""Which strategy when: the quickstart's job by every strategy, over paired seeds.

    python benchmarks/strategies.py [--seeds 5] [--recipes quickstart quickstart-ppo ...]
    python benchmarks/strategies.py --forgetting [--seeds 5]

The first prints one table of all recipes `quickstart*.yaml` that train a model, and paired
differences between them. Seeds draw demonstrations, order, initialization and samples; the test
prompts stay the same and were never used to choose a setting.

The second trains SFT by LoRA and by full tuning over learning rates, and prints how much of the
general text's likelihood each gives up for how much accuracy: the least forgetting of any rate that
reaches an accuracy.

Forgetting is the rise of the general text's loss over the base model's, in nats per token. Intervals
are 95 % t intervals over seeds. `--set` shortens every run, to see that the benchmark works.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from quickstart import RECIPE, mean_and_margin, percent, run

from alignflow.recipe import METHODS

RECIPES = RECIPE.parent
NAMES = (
    "quickstart",
    *(
        f"quickstart-{name}"
        for name in ("ppo", "rft", "distill", "orpo", "qlora", "full", "pretrain")
    ),
)
TAUGHT = "quickstart-distill"
"""Its teacher is the quickstart's result of the same seed."""
GIB = 1024**3
MARGIN = 0.05
"""Of accuracy, that a strategy may be worse by."""
SFT_ONLY = ("method=none", "dpo=null", "reward=null", "merge=null", "tracking.upload=adapter")
RATES = {
    "lora": (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2),
    "full": (1.5e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3),
}
"""A factor of two apart, as many for both modes: the least of more rates would be lower by chance."""
Figures = dict[str, float]


def measure(home: Path, seed: int, name: str, overrides: list[str]) -> dict[str, Figures]:
    """Figures of each model that a recipe makes, by row of the table."""
    if name == TAUGHT:
        teacher = run(home, seed, *overrides)["merged_model"]
        overrides = [*overrides, f"distill.teacher={teacher}"]
    report = run(home, seed, *overrides, recipe=RECIPES / f"{name}.yaml")
    stages = {entry["stage"]: entry for entry in report["stages"]}
    return {
        f"{name}: {stage}": {
            **quality(report["evaluation"], "sft" if stage == "sft" else "aligned"),
            **cost(stages, stage),
        }
        for stage in stages
        if stage == "sft" or stage in METHODS
    }


def quality(evaluation: dict[str, Any], model: str) -> Figures:
    """Accuracy, safety and forgetting of a model."""
    found = evaluation[model]
    kept = {
        name: found[name]
        for name in ("accuracy", "sampled_accuracy", "unsafe_rate", "paraphrase_accuracy")
    }
    return {**kept, "forgetting": forgetting(evaluation, model)}


def forgetting(evaluation: dict[str, Any], model: str) -> float:
    """Rise of the general text's loss, in nats per token."""
    after, before = (evaluation[name]["perplexity_general"] for name in (model, "base"))
    return math.log(after / before)


def cost(stages: dict[str, dict[str, Any]], last: str) -> Figures:
    """Seconds, memory and parameters of the stages that made a model: of those it read from only.

    Seconds are those of the attempt that made the artifact: recipes share stages, and a stage that
    another recipe has done is Cached.

    Raises:
        SystemExit: An artifact was made by a version that recorded no peak memory.
    """
    peaks, trainable, seconds = [], 0.0, dict[str, float]()
    manifests = {
        stage: json.loads((Path(entry["artifact"]) / "manifest.json").read_text())
        for stage, entry in stages.items()
        if entry["artifact"]
    }
    read = {ref["stage"] for ref in manifests[last]["spec"]["inputs"].values()}
    for stage, manifest in manifests.items():
        if stage == "prepare" or stage not in (*read, last):
            continue
        result = manifest["result"]
        peak = result["details"].get("peak_memory_bytes")
        if peak is None:
            raise SystemExit(
                f"{stages[stage]['artifact']} has no peak_memory_bytes; use another --home."
            )
        peaks.append(float(peak.get("gpu", peak["process"])))
        seconds[f"seconds {stage}"] = float(manifest["seconds"])
        if stage == last:
            trainable = float(result["params"]["trainable_params"])
    return {**seconds, "peak_bytes": max(peaks), "trainable": trainable}


def table(seeds: list[dict[str, Figures]]) -> str:
    """One row per model, in Markdown."""
    header = (
        "",
        "accuracy (greedy)",
        "accuracy (sampled, T=1)",
        "unsafe",
        "paraphrases",
        "forgetting, nats",
        "trains",
        "peak GiB",
        "seconds by stage",
    )
    lines = [header, ("---",) * len(header)]
    for name in seeds[0]:
        column = columns(seeds, name)
        lines.append(
            (
                name,
                *(
                    percent(column(metric))
                    for metric in (
                        "accuracy",
                        "sampled_accuracy",
                        "unsafe_rate",
                        "paraphrase_accuracy",
                    )
                ),
                plain(column("forgetting")),
                f"{statistics.median(column('trainable')):,.0f}",
                f"{statistics.median(column('peak_bytes')) / GIB:.2f}",
                ", ".join(
                    f"{figure.removeprefix('seconds ')} {statistics.median(column(figure)):.0f}"
                    for figure in seeds[0][name]
                    if figure.startswith("seconds ")
                ),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns(seeds: list[dict[str, Figures]], row: str) -> Callable[[str], list[float]]:
    """A function from a figure's name to its value in each seed, for one row."""
    return lambda figure: [seed[row][figure] for seed in seeds]


def plain(values: list[float]) -> str:
    """Mean and margin, as they are; one value has no margin."""
    mean, margin = mean_and_margin(values)
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {margin:.3f}"


def differences(seeds: list[dict[str, Figures]]) -> str:
    """Paired differences: each aligned model over its SFT model and over the quickstart's result."""
    rows = list(seeds[0])
    lines = ["Paired differences, percentage points (forgetting: nats):", ""]
    for row in rows:
        name, _, stage = row.partition(": ")
        others = [f"{name}: sft"] if stage != "sft" else []
        others += ["quickstart: dpo" if stage != "sft" else "quickstart: sft"]
        for other in others:
            if other != row and other in rows:
                lines.append(f"- {row} over {other}: {_difference(seeds, row, other)}")
    return "\n".join(lines)


def _difference(seeds: list[dict[str, Figures]], row: str, other: str) -> str:
    of = partial(_apart, seeds, row, other)
    return (
        f"greedy {percent(of('accuracy'))}, sampled {percent(of('sampled_accuracy'))}, "
        f"unsafe {percent(of('unsafe_rate'))}, forgetting {plain(of('forgetting'))}"
    )


def _apart(seeds: list[dict[str, Figures]], row: str, other: str, figure: str) -> list[float]:
    """Differences of a figure, seed by seed."""
    pairs = zip(columns(seeds, row)(figure), columns(seeds, other)(figure), strict=True)
    return [mine - theirs for mine, theirs in pairs]


def not_worse(seeds: list[dict[str, Figures]]) -> str:
    """Whether aligned models are no more than MARGIN below the quickstart's, by the 95 % interval."""
    reference = "quickstart: dpo"
    lines = [f"Not worse than {reference} by {100 * MARGIN:.0f} points:", ""]
    for row in seeds[0]:
        if row == reference or row.endswith(": sft") or reference not in seeds[0]:
            continue
        said = []
        for name, figure in (("greedy", "accuracy"), ("sampled", "sampled_accuracy")):
            mean, margin = mean_and_margin(_apart(seeds, row, reference, figure))
            verdict = "yes" if mean - margin >= -MARGIN else "not shown"
            said.append(f"{name} {verdict} (at worst {100 * (mean - margin):+.1f})")
        lines.append(f"- {row}: {', '.join(said)}")
    return "\n".join(lines)


def measure_rates(home: Path, seed: int, overrides: list[str]) -> dict[str, Figures]:
    """Accuracy and forgetting of SFT at each rate, by `mode rate`."""
    found: dict[str, Figures] = {}
    for mode, rates in RATES.items():
        for rate in rates:
            report = run(
                home,
                seed,
                *SFT_ONLY,
                f"tuning.mode={mode}",
                f"sft.learning_rate={rate:g}",
                *overrides,
            )
            found[f"{mode} {rate:g}"] = quality(report["evaluation"], "sft")
    return found


def least_forgetting(runs: dict[str, Figures], mode: str, accuracy: float) -> float | None:
    """The least forgetting among a mode's runs that reach an accuracy; None where none does."""
    return min(
        (
            figures["forgetting"]
            for name, figures in runs.items()
            if name.startswith(f"{mode} ") and figures["accuracy"] >= accuracy
        ),
        default=None,
    )


def forgetting_table(seeds: list[dict[str, Figures]]) -> str:
    """Each rate's figures, then the least forgetting of both modes at equal accuracy."""
    lines = [
        "| mode, learning rate | accuracy (greedy) | accuracy (sampled) | forgetting, nats |",
        "|---|---|---|---|",
    ]
    for name in seeds[0]:
        column = columns(seeds, name)
        cells = (percent(column("accuracy")), percent(column("sampled_accuracy")))
        lines.append(f"| {name} | {' | '.join(cells)} | {plain(column('forgetting'))} |")
    lines += [
        "",
        "Least forgetting of any rate that reaches an accuracy, paired by seed:",
        "",
        "| accuracy at least | LoRA | full | LoRA - full | seeds in which both reach it |",
        "|---|---|---|---|---|",
    ]
    best = [max(figures["accuracy"] for figures in runs.values()) for runs in seeds]
    top = math.floor(100 * max(best))
    for target in range(max(top - 20, 0), top + 1, 2):
        pairs = [
            (lora, full)
            for runs in seeds
            if (lora := least_forgetting(runs, "lora", target / 100)) is not None
            and (full := least_forgetting(runs, "full", target / 100)) is not None
        ]
        if pairs:
            lora, full = zip(*pairs, strict=True)
            apart = plain([one - other for one, other in pairs])
            lines.append(
                f"| {target} % | {plain(list(lora))} | {plain(list(full))} | {apart} | "
                f"{len(pairs)} of {len(seeds)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", help="names; all that there are if left out")
    parser.add_argument("--forgetting", action="store_true", help="LoRA against full over rates")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    parser.add_argument("--json", type=Path, help="write every figure of every seed here")
    arguments = parser.parse_args()
    present = [name for name in NAMES if (RECIPES / f"{name}.yaml").is_file()]
    names = arguments.recipes or present
    seeds = []
    with tempfile.TemporaryDirectory(prefix="alignflow-strategies-") as temporary:
        home = arguments.home or Path(temporary)
        for seed in range(arguments.seeds):
            place, rows = home / f"seed-{seed}", dict[str, Figures]()
            if arguments.forgetting:
                rows = measure_rates(place, seed, arguments.set)
            else:
                for name in names:
                    rows |= measure(place, seed, name, arguments.set)
            seeds.append(rows)
            print(f"seed {seed}: {json.dumps(rows)}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(seeds, indent=2) + "\n")
    if arguments.forgetting:
        print(forgetting_table(seeds))
    else:
        print(table(seeds), differences(seeds), not_worse(seeds), sep="\n\n")


if __name__ == "__main__":
    main()
