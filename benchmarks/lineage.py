"""Retrains in a row on the quickstart's job, each on fresh pairs, against training once on all of them.

    python benchmarks/lineage.py [--retrains 3] [--prompts 200] [--seeds 1] [--home DIR] [--json FILE]

Before each retrain, "production" prompts are answered by whatever the registry's alias `champion`
serves, four times each, judged by execution and paired, as `rebuild_preferences` does. The gate
decides on the development prompts; the test prompts are only measured, and decide nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import func, select

from alignflow.ledger import add, champion, renew_holdout, status
from alignflow.ledger.schema import snapshot_rows, snapshots
from alignflow.ledger.store import opened, reading
from alignflow.recipe import DataSource, Recipe, load_recipe
from alignflow.services import start_temporary_server
from alignflow.stages import prefect_environment

RECIPE = Path(__file__).parent.parent / "deployments/recipes/quickstart-retrain.yaml"
SAMPLES_PER_PROMPT = 4
FIGURES = ("accuracy", "sampled_accuracy", "unsafe_rate", "perplexity_general")


def recipe_of(seed: int, overrides: list[str]) -> Recipe:
    """The quickstart's retraining recipe, its gate on the development prompts."""
    settings = [
        f"seed={seed}",
        "data.evaluation=builtin:freight-development",
        "retrain.min_new_pairs=1",
        *overrides,
    ]
    return load_recipe(RECIPE, settings)


def sft_only(recipe: Recipe) -> Recipe:
    """The part of the recipe that makes generation 0; retrain finds its stages cached."""
    data = recipe.data.model_copy(update={"preferences": []})
    changes = {"method": "none", "dpo": None, "reward": None, "retrain": None, "data": data}
    return Recipe.model_validate({**recipe.model_dump(), **changes, "data": data.model_dump()})


def once_on_all(recipe: Recipe, files: list[Path]) -> Recipe:
    """SFT, then DPO on every pair of every batch."""
    sources = [DataSource(source=str(file)) for file in files]
    data = recipe.data.model_copy(update={"preferences": sources})
    return Recipe.model_validate(
        {**recipe.model_dump(), "retrain": None, "data": data.model_dump()}
    )


class Model:
    """A merged model, loaded as whoever serves it would."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.policy: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()

    def pairs(self, seed: str, prompts: int) -> list[dict[str, Any]]:
        """Judged pairs of its own answers to fresh prompts."""
        import torch

        from alignflow.builtin.freight.rebuild_preferences import (
            pair_up,
            production_examples,
            respond,
        )

        chance = Random(seed)
        torch.manual_seed(chance.randrange(2**31))
        examples = production_examples(chance, prompts)
        asked = [example.messages for example in examples for _ in range(SAMPLES_PER_PROMPT)]
        answers = respond(self.policy, self.tokenizer, asked, sample=True)
        return [
            pair
            for number, example in enumerate(examples)
            for pair in pair_up(
                chance, example, answers[number * SAMPLES_PER_PROMPT :][:SAMPLES_PER_PROMPT]
            )
        ]

    def on_test(self, recipe: Recipe, limit: int | None) -> dict[str, float]:
        """Figures on the test prompts and the general text."""
        from alignflow.builtin import rows
        from alignflow.builtin.freight.rebuild_preferences import chat_ids
        from alignflow.evaluation import Job, Prompt, load_metrics, measure

        prompts = [
            Prompt(
                chat_ids(self.tokenizer, row["prompt"], generate=True),
                row["prompt"][0]["content"],
                row["target"],
                row["group"],
                "",
            )
            for row in rows("freight-evaluation")
            if row["group"] == "test"
        ]
        general = [row["text"] for row in rows("freight-general", recipe.seed)]
        section = recipe.evaluation
        job = Job(prompts[:limit], general[:limit], section, load_metrics(section), recipe.seed)
        found = measure(self.policy, self.tokenizer, job).metrics
        return {name: found[name] for name in FIGURES}


def served(home: Path, model: str) -> Path:
    """Directory behind the alias `champion`."""
    from alignflow.lineage import Registry

    found = champion(home, model)
    if found is None or Registry(home, model).version_of(found.digest) is None:
        raise SystemExit(f"{model} has no champion in {home}")
    return Path(found.artifacts["merge"]) / "model"


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> Path:
    """JSONL for the ledger."""
    names = ("prompt", "chosen", "rejected")
    lines = [json.dumps({name: pair[name] for name in names}) for pair in pairs]
    path.write_text("\n".join(lines) + "\n")
    return path


def most_counted(home: Path) -> int:
    """How often the most counted row was new to a promoted generation: 1, or a row is counted twice."""
    counted = (
        select(func.count())
        .join(snapshots, snapshots.c.key == snapshot_rows.c.snapshot)
        .where(snapshots.c.state == "promoted", snapshot_rows.c.replayed.is_(False))
        .group_by(snapshot_rows.c.row)
    )
    with opened(home, create=False) as engine, reading(engine) as connection:
        return max(connection.execute(counted).scalars(), default=0)


def lineage_of_seed(home: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every generation's figures of one seed, and those of training once."""
    from flows.finetune import finetune
    from flows.retrain import retrain

    recipe = recipe_of(seed, options.set)
    renew_holdout(home, 0.0)  # the gate has its own prompts with targets
    founder: Any = finetune(recipe=sft_only(recipe), home=home)
    serving = Path(founder["merged_model"])
    generations = [{"generation": 0, **Model(serving).on_test(recipe, options.test_prompts)}]
    files = []
    for number in range(1, options.retrains + 1):
        pairs = Model(serving).pairs(f"lineage/{seed}/{number}", options.prompts)
        files.append(write_pairs(home / f"pairs-{number}.jsonl", pairs))
        add(home, [files[-1]])
        started = time.monotonic()
        report: Any = retrain(recipe=recipe, home=home, reason=f"batch {number}")
        serving = served(home, recipe.name)
        generations.append(described(report, time.monotonic() - started, recipe, options))
        say(f"seed {seed}, retrain {number}: {generations[-1]}")
    once: Any = finetune(recipe=once_on_all(recipe, files), home=home)
    found = status(home)
    return {
        "generations": generations,
        "once": Model(Path(once["merged_model"])).on_test(recipe, options.test_prompts),
        "rows": {
            name: found[name] for name in ("rows", "consumed", "waiting", "dropped", "reserved")
        },
        "most_counted": most_counted(home),
    }


def described(
    report: dict[str, Any], seconds: float, recipe: Recipe, options: argparse.Namespace
) -> dict[str, Any]:
    """A candidate: what it was trained on, what the gate said, how good it is on the test prompts."""
    found = report["retrain"]
    candidate = Model(Path(report["merged_model"]))
    return {
        "generation": found["generation"] if found["generation"] is not None else "-",
        "verdict": found["verdict"],
        "new": found["rows"] - found["replayed"],
        "replayed": found["replayed"],
        "kl_to_sft": report["evaluation"]["aligned"].get("kl_to_sft"),
        "seconds": seconds,
        **candidate.on_test(recipe, options.test_prompts),
    }


def table(found: dict[str, Any]) -> str:
    """One seed, in Markdown."""
    columns = ("generation", "verdict", "new", "replayed", *FIGURES, "kl_to_sft", "seconds")
    entries = [*found["generations"], {"generation": "once on all", **found["once"]}]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *(
            "| " + " | ".join(_cell(entry.get(name)) for name in columns) + " |"
            for entry in entries
        ),
        "",
        f"Rows: {found['rows']}; the most counted row was new to {found['most_counted']} generation.",
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--retrains", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=200, help="production prompts a batch")
    parser.add_argument("--test-prompts", type=int, help="measure on the first so many only")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--home", type=Path, help="kept; a temporary directory if left out")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--set", action="append", default=[], help="override a field of the recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignflow-lineage-") as temporary:
        place = (options.home or Path(temporary)).absolute()
        os.environ.update(prefect_environment(place))  # before prefect is imported
        wait_for_server = start_temporary_server(place)
        wait_for_server()
        found = [
            lineage_of_seed(place / f"seed-{seed}", seed, options) for seed in range(options.seeds)
        ]
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write("\n\n".join(table(entry) for entry in found) + "\n")


if __name__ == "__main__":
    main()
