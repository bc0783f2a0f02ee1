"""Two retrains in a row on the embedded job, on the real stages, in a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import new_home, states
from ledger_cases import write

from alignflow.builtin import rows
from alignflow.ledger import add, champion, renew_holdout, status
from alignflow.lineage.by_hand import promote_by_hand
from alignflow.recipe import Recipe
from alignflow.stages.artifacts import read_manifest
from flows.retrain import retrain

pytestmark = pytest.mark.proof
SHORT = {"max_steps": 2, "batch_size": 8, "max_length": 192, "learning_rate": 1e-3}
LOADS = """
import sys
sys.modules["alignflow"] = None
import mlflow
from transformers import AutoModelForCausalLM, AutoTokenizer
mlflow.set_tracking_uri(sys.argv[1])
path = mlflow.artifacts.download_artifacts("models:/small-retrain@champion")
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
assert model(**tokenizer("How many trucks?", return_tensors="pt")).logits.isfinite().all()
sys.stdout.write("loaded")
"""


def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small-retrain",
            "base_model": "builtin:freight-base",
            "data": {
                "sft": {"source": "builtin:freight-sft", "weight": 0.1},
                "preferences": "ledger:default",
                "evaluation": "builtin:freight-evaluation",
                "general": {"source": "builtin:freight-general", "weight": 0.1},
            },
            "compute": {"threads": 1},
            "sft": SHORT,
            "method": "dpo",
            "dpo": SHORT,
            "evaluation": {
                "metrics": ["execution_accuracy"],
                "max_examples": 8,
                "max_new_tokens": 12,
                "bootstrap_resamples": 100,
            },
            "retrain": {"min_new_pairs": 20, "gate": {"bootstrap_resamples": 200}},
        }
    )


def feedback(home: Path, first: int, last: int, *more: dict[str, Any]) -> None:
    pairs = [
        {name: pair[name] for name in ("prompt", "chosen", "rejected")}
        for pair in rows("freight-preferences")[first:last]
    ]
    add(home, [write(home.parent / f"{first}.jsonl", [*pairs, *more])])


@pytest.fixture(scope="module")
def reports(
    one_forkserver: None,
    prefect_server: str,
    mlflow_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Two runs; a person promotes the candidate of the first, so that the second continues it."""
    home = new_home(tmp_path_factory.mktemp("real") / "home", mlflow_store)
    renew_holdout(home, 0.0)
    long = {"prompt": "How many? " * 300, "chosen": "SELECT 1", "rejected": "SELECT 2"}
    feedback(home, 0, 40, long)
    first: Any = retrain(recipe=recipe(), home=home)
    promoted = promote_by_hand(home, first["run_id"], None, "to continue it")
    feedback(home, 40, 70)
    second: Any = retrain(recipe=recipe(), home=home)
    return {"home": home, "first": first, "promoted": promoted, "second": second}


def test_a_few_prompts_decide_nothing_and_it_is_said_how_many_are_missing(
    reports: dict[str, Any],
) -> None:
    found = reports["first"]["retrain"]
    assert found["verdict"] in ("inconclusive", "reject")
    assert found["power"]["prompts"] == 8 and found["power"]["missing_prompts"] > 500


def test_the_second_candidate_continues_the_first_with_the_first_sft_model_as_reference(
    reports: dict[str, Any],
) -> None:
    first, second = reports["first"], reports["second"]
    assert list(states(second)) == ["prepare", "dpo", "evaluate", "merge"]
    spec = read_manifest(artifact_of(second, "dpo")).spec
    assert Path(spec.inputs["init"].path) == artifact_of(first, "dpo")
    assert Path(spec.inputs["sft"].path) == artifact_of(first, "sft")
    assert second["retrain"]["replayed"] == 8 and second["retrain"]["continues"] == 1
    assert second["evaluation"]["aligned"]["kl_to_sft"] is not None


def test_every_row_is_where_it_belongs_and_the_too_long_one_is_dropped_for_good(
    reports: dict[str, Any],
) -> None:
    found = status(reports["home"])
    assert reports["first"]["retrain"]["dropped"] == 1
    places = ("waiting", "reserved", "consumed", "contradictory", "dropped")
    assert sum(found[place] for place in places) == found["rows"]
    assert found["reserved"] == 0 and found["consumed"] >= 39


def test_the_champion_loads_by_its_alias_in_a_process_without_this_project(
    reports: dict[str, Any],
) -> None:
    uri = f"sqlite:///{reports['home'] / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADS, uri],
        capture_output=True,
        text=True,
        cwd=reports["home"],
    )
    assert done.stdout.endswith("loaded"), done.stderr
    head = champion(reports["home"], "small-retrain")
    assert head is not None and head.generation == 1
    certificate = Path(head.artifacts["merge"]) / "model" / "merge_certificate.json"
    assert json.loads(certificate.read_text())["status"] == "passed"


def artifact_of(report: dict[str, Any], stage: str) -> Path:
    return next(Path(entry["artifact"]) for entry in report["stages"] if entry["stage"] == stage)
