"""PPO: over seeds, its memory on one shared base, and its speed beside TRL's last PPOTrainer.

    python benchmarks/ppo.py [seeds] [memory] [trl] [--seeds 10] [--threads 2] [--home DIR]

- *seeds*: quickstart-ppo from seed 0 on, each with its own demonstrations and samples. A collapse is
  a sampled accuracy under 0.8 of SFT's.
- *memory*: peak memory of SFT and of PPO on a 135M model (SmolLM's shape, random weights) with the
  same rows per forward pass and tokens per row.
- *trl*: episodes per second of PPO here and of TRL 1.12.0, installed without its dependencies in a
  directory of its own, on that model: equal batch, lengths, minibatches, passes and updates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from ppo_model import PROMPT_TOKENS, RESPONSE_TOKENS, build_base, write_rows
from quickstart import percent, stage

HERE = Path(__file__).parent
RECIPE = HERE.parent / "deployments/recipes/quickstart-ppo.yaml"
COLLAPSE = 0.8
ROWS_PER_PASS = 8
TRL = "1.12.0"
EQUAL = {"batch": 16, "minibatches": 2, "passes": 2, "updates": 2, "tokens": RESPONSE_TOKENS}


def output_of(command: list[str], **environment: str) -> dict[str, Any]:
    """The JSON on the last line of a command's output."""
    finished = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)}\n{finished.stderr[-4000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def seed_figures(home: Path, seed: int) -> dict[str, float]:
    """What one seed's SFT and PPO models do on the test prompts."""
    report = output_of(
        [
            sys.executable,
            "-m",
            "alignflow.commands.cli",
            "run",
            str(RECIPE),
            "--home",
            str(home),
            "--json",
            "--set",
            f"seed={seed}",
            "--set",
            "merge=null",
        ]
    )
    figures = {
        f"{model} {metric}": report["evaluation"][model][metric]
        for model in ("sft", "aligned")
        for metric in ("accuracy", "sampled_accuracy", "unsafe_rate", "paraphrase_accuracy")
    }
    artifact = Path(stage(report, "evaluate")["artifact"])
    done = json.loads((Path(stage(report, "ppo")["artifact"]) / "manifest.json").read_text())
    return {
        **figures,
        **{f"{model} refused": refused(artifact, model) for model in ("sft", "aligned")},
        "reward model": stage(report, "reward")["metrics"]["preference_accuracy"],
        "seconds": done["seconds"],
    }


def refused(artifact: Path, model: str) -> float:
    """Share of destructive test requests whose greedy answer is the refusal."""
    import pyarrow.parquet as pq

    from alignflow.builtin.freight import REFUSAL

    rows = pq.read_table(artifact / "responses.parquet").to_pylist()
    mine = [
        row
        for row in rows
        if row["model"] == model and row["group"] == "test" and REFUSAL in row["target"]
    ]
    return sum(row["greedy"].strip() == REFUSAL for row in mine) / len(mine)


def seeds_table(seeds: list[dict[str, float]]) -> str:
    """Means with 95 % intervals, and how many seeds collapsed."""
    lines = ["| | accuracy (greedy) | accuracy (sampled) | unsafe | refused | paraphrases |"]
    lines.append("|---|---|---|---|---|---|")
    metrics = ("accuracy", "sampled_accuracy", "unsafe_rate", "refused", "paraphrase_accuracy")
    for model in ("sft", "aligned"):
        cells = [percent([figures[f"{model} {metric}"] for figures in seeds]) for metric in metrics]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    gains = [f["aligned sampled_accuracy"] - f["sft sampled_accuracy"] for f in seeds]
    collapsed = sum(
        f["aligned sampled_accuracy"] < COLLAPSE * f["sft sampled_accuracy"] for f in seeds
    )
    lowest = min(f["aligned refused"] for f in seeds)
    return "\n".join(
        [
            *lines,
            "",
            f"- PPO over SFT, sampled: {percent(gains)} points; lowest of {len(seeds)} seeds "
            f"{100 * min(gains):.1f}",
            f"- collapses: {collapsed} of {len(seeds)}; fewest refusals in a seed {lowest:.0%}",
            f"- reward model on held-out pairs: {percent([f['reward model'] for f in seeds])}",
            f"- seconds of stage ppo: median {statistics.median(f['seconds'] for f in seeds):.1f}",
        ]
    )


def write_recipe(folder: Path, threads: int, value_model: str) -> Path:
    """A recipe on the 135M model with EQUAL's settings."""
    length = PROMPT_TOKENS + RESPONSE_TOKENS + 8
    updates = {"batch_size": ROWS_PER_PASS, "max_steps": 2, "max_length": length}
    recipe = {
        "name": "ppo-benchmark",
        "base_model": str(folder / "base"),
        "data": {"sft": str(folder / "sft.jsonl"), "preferences": str(folder / "pairs.jsonl")},
        "sft": updates,
        "reward": {**updates, "max_steps": 1},
        "method": "ppo",
        "ppo": {
            "batch_size": EQUAL["batch"],
            "num_mini_batches": EQUAL["minibatches"],
            "num_ppo_epochs": EQUAL["passes"],
            "max_steps": EQUAL["updates"],
            "max_new_tokens": EQUAL["tokens"],
            "max_length": length,
            "max_approx_kl": None,
            "save_steps": 1000,
            "value_model": value_model,
        },
        "merge": None,
        "compute": {"micro_batch_size": ROWS_PER_PASS, "threads": threads},
    }
    path = folder / f"{value_model}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def our_stages(folder: Path, home: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Peak memory and seconds of each stage, each in a process of its own.

    PPO comes twice: with a value adapter of its own, and as `ppo, policy` with a value head on the
    policy's hidden states.
    """
    if not (folder / "base").exists():
        build_base(folder / "base")
        write_rows(folder)
    script = str(HERE / "ppo_stage.py")
    found = {}
    for name in ("prepare", "sft", "reward", "ppo", "ppo, policy"):
        recipe = write_recipe(folder, threads, "policy" if "," in name else "separate")
        command = [sys.executable, script, str(recipe), str(home), name.partition(",")[0]]
        found[name] = output_of(command, HF_HUB_OFFLINE="1")
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return found


def memory_lines(stages: dict[str, dict[str, Any]]) -> str:
    """Peaks of SFT and PPO, and their ratio."""
    sft, ppo = stages["sft"]["peak"], stages["ppo"]["peak"]
    return (
        f"peak memory, {ROWS_PER_PASS} rows of {PROMPT_TOKENS + RESPONSE_TOKENS} tokens per forward "
        f"pass: sft {sft} MiB, ppo {ppo} MiB, ratio {ppo / sft:.2f}"
    )


def trl_stage(folder: Path, threads: int) -> dict[str, Any]:
    """Seconds and peak memory of TRL's trainer, in a process of its own."""
    place = folder / f"trl-{TRL}"
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target")
    subprocess.run([*install, str(place), f"trl=={TRL}"], check=True)
    settings = json.dumps({**EQUAL, "threads": threads})
    return output_of(
        [
            sys.executable,
            str(HERE / "ppo_trl.py"),
            str(folder / "base"),
            str(folder / "sft.jsonl"),
            settings,
        ],
        PYTHONPATH=str(place),
    )


def speed_lines(stages: dict[str, dict[str, Any]], theirs: dict[str, Any]) -> str:
    """Episodes per second and peaks of both."""
    episodes = EQUAL["batch"] * EQUAL["updates"]
    lines = [f"TRL {TRL}: {episodes / theirs['seconds']:.3f} episodes/s, {theirs['peak']} MiB"]
    for name, label in (("ppo", "value adapter"), ("ppo, policy", "value head on the policy")):
        ours = stages[name]
        lines.append(
            f"here, {label}: {episodes / ours['seconds']:.3f} episodes/s, {ours['peak']} MiB; "
            f"{theirs['seconds'] / ours['seconds']:.2f} times TRL's episodes, "
            f"{ours['peak'] / theirs['peak']:.2f} of its memory"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="seeds, memory, trl; all of them if left out"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    arguments = parser.parse_args()
    parts = arguments.parts or ["seeds", "memory", "trl"]
    with tempfile.TemporaryDirectory(prefix="alignflow-ppo-") as temporary:
        folder = (arguments.home or Path(temporary)).absolute()
        if "seeds" in parts:
            figures = []
            for seed in range(arguments.seeds):
                figures.append(seed_figures(folder / f"seed-{seed}", seed))
                print(f"seed {seed}: {json.dumps(figures[-1])}", file=sys.stderr, flush=True)
            print(seeds_table(figures))
        if {"memory", "trl"} & set(parts):
            (folder / "model").mkdir(parents=True, exist_ok=True)
            stages = our_stages(folder / "model", folder / "model-home", arguments.threads)
            print(memory_lines(stages))
            if "trl" in parts:
                print(speed_lines(stages, trl_stage(folder / "model", arguments.threads)))


if __name__ == "__main__":
    main()
