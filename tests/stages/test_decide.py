"""A whole decision on the freight job, whose winner is known: its answers have a form to be learned."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_runs import new_home

from alignflow.deciding import decide, print_decision, write_winner
from alignflow.pipeline import plain_console
from alignflow.recipe import Recipe, load_recipe

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(900)]
PAGE = "# {name}\n\nThe {name} handbook says that {name} has {count} trucks in its yard."
FIELDS: dict[str, Any] = {
    "name": "freight",
    "base_model": "builtin:freight-base",
    "data": {"general": {"source": "builtin:freight-general", "weight": 0.05}},
    "evaluation": {"metrics": ["execution_accuracy"], "max_new_tokens": 40},
    "decide": {
        "questions": {"source": "builtin:freight-development", "weight": 0.25},
        "demonstrations": "builtin:freight-sft",
        "arms": ["base", "rag", "sft"],
        "configurations": 1,
        "seeds": 2,
        "sft": {"learning_rate": 6e-3, "max_steps": 40, "max_length": 192},
        "prices": {"million_prompt_tokens": 1.0},
    },
}


class Decided(NamedTuple):
    recipe: Recipe
    home: Path
    pages: Path
    decision: dict[str, Any]


def made(home: Path) -> Counter[str]:
    """Finished artifacts by stage."""
    return Counter(path.parent.parent.name for path in home.glob("artifacts/*/*/manifest.json"))


@pytest.fixture(scope="module")
def decided(
    tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path, one_forkserver: None
) -> Decided:
    folder = tmp_path_factory.mktemp("decide")
    pages = folder / "pages"
    pages.mkdir()
    for count, name in enumerate(("Ibis", "Okapi", "Tapir")):
        (pages / f"{name}.md").write_text(PAGE.format(name=name, count=count + 10))
    section = {**FIELDS["decide"], "documents": str(pages)}
    recipe = load_recipe({**FIELDS, "decide": section})
    home = new_home(folder / "home", mlflow_store)
    decision = decide(recipe, home=home, run_id="first", progress=False)
    return Decided(recipe, home, pages, decision)


def test_what_is_known_to_pay_is_recommended_and_the_table_has_every_figure(
    decided: Decided,
) -> None:
    decision = decided.decision
    arms, sft = decision["arms"], decision["arms"]["sft"]
    assert decision["recommended"] == decision["contender"] == "sft", decision["sentence"]
    assert decision["sentence"].startswith("sft: ")
    assert len(sft["by_seed"]) == 2 and sft["interval"][0] > arms["base"]["interval"][1]
    assert sft["cost_of_preparing"] > 0 and arms["base"]["cost_of_preparing"] == 0
    assert arms["rag"]["prompt_tokens"] > arms["base"]["prompt_tokens"] > 0
    assert arms["base"]["forgetting_nats"] == 0 and abs(sft["forgetting_nats"]) < 5
    assert all(
        row["latency_p95_seconds"] >= row["latency_p50_seconds"] > 0 for row in arms.values()
    )
    assert set(arms["base"]["groups"]) == {"development", "paraphrase"}


def test_it_is_kept_for_programs_for_people_and_in_mlflow(
    decided: Decided, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = decided.home / "runs" / "first"
    assert json.loads((folder / "decide.json").read_text()) == decided.decision
    page = (folder / "decide.html").read_text()
    assert page.count("<circle") == 3 and "trucks in its yard" in page
    print_decision(decided.decision, plain_console())
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    with sqlite3.connect(decided.home / "mlflow.db") as database:
        names = {name for (name,) in database.execute("SELECT name FROM runs")}
        [figure] = database.execute(
            "SELECT value FROM metrics JOIN runs USING (run_uuid) WHERE name = 'sft' AND key = 'accuracy'"
        ).fetchone()
    assert {"freight: sft", "base", "rag", "sft"} <= names
    assert figure == pytest.approx(decided.decision["arms"]["sft"]["accuracy"])


def test_the_command_decides_the_same_through_prefect_and_makes_nothing_again(
    decided: Decided, tmp_path: Path
) -> None:
    before, file = made(decided.home), tmp_path / "freight.yaml"
    section = {**FIELDS["decide"], "documents": str(decided.pages)}
    file.write_text(json.dumps({**FIELDS, "decide": section}))
    command = ["decide", str(file), "--home", str(decided.home), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "alignflow.commands.cli", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["recommended"] == "sft" and made(decided.home) == before
    for arm, row in again["arms"].items():
        assert row["accuracy"] == decided.decision["arms"][arm]["accuracy"]


def test_what_wins_is_written_as_a_recipe_that_trains_it(decided: Decided, tmp_path: Path) -> None:
    commands = write_winner(decided.decision, decided.recipe, tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.stages == ["prepare", "sft", "evaluate", "merge"] and recipe.sft is not None
    assert recipe.sft.learning_rate == 6e-3 and recipe.decide is None
    assert commands[0].startswith("alignflow run ") and "generate last" in commands[1]
    rag = {**decided.decision, "recommended": "rag"}
    [asking] = write_winner(rag, decided.recipe, tmp_path / "rag")
    assert asking.endswith('"your question"') and f"--index {tmp_path / 'rag'}" in asking
    assert write_winner({**rag, "recommended": None}, decided.recipe, tmp_path / "none") == []


def test_a_changed_document_asks_only_those_again_who_read_it(decided: Decided) -> None:
    before = made(decided.home)
    (decided.pages / "Okapi.md").write_text(PAGE.format(name="Okapi", count=99))
    again = decide(decided.recipe, home=decided.home, run_id="second", progress=False)
    new = made(decided.home) - before
    assert new["index"] == 1 and not new["sft"] and not new["prepare"] and new["ask"] <= 2
    for arm in ("base", "sft"):
        assert again["arms"][arm]["by_seed"] == decided.decision["arms"][arm]["by_seed"]
