"""A new user with rows of their own: `init`, `check`, `run`, `generate`; no file edited by hand."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_runs import new_home

from alignflow.builtin import rows
from alignflow.commands import cli
from alignflow.recipe import load_recipe

MODEL = "builtin:freight-base"
COUNT = 24
LONGEST_SECONDS = 150 * float(os.environ.get("ALIGNFLOW_TEST_SLOWNESS", "2"))

Pairs = list[tuple[str, str]]


def questions() -> Pairs:
    drawn = rows("freight-sft")[:COUNT]
    return [(row["prompt"][-1]["content"], row["completion"][-1]["content"]) for row in drawn]


def table(folder: Path) -> Path:
    path = folder / "tickets.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *questions()])
    return path


def alpaca(folder: Path) -> Path:
    told = [{"instruction": asked, "input": "", "output": said} for asked, said in questions()]
    return written(folder / "alpaca.json", json.dumps(told))


def sharegpt(folder: Path) -> Path:
    turns = [({"from": "human", "value": a}, {"from": "gpt", "value": s}) for a, s in questions()]
    return lines(folder / "sharegpt.jsonl", [{"conversations": pair} for pair in turns])


def openai_tools(folder: Path) -> Path:
    drawn = rows("freight-tools-sft")[:COUNT]
    told = [{"messages": r["prompt"] + r["completion"], "tools": r["tools"]} for r in drawn]
    return lines(folder / "chat.jsonl", told)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines(path: Path, told: list[dict[str, Any]]) -> Path:
    return written(path, "".join(json.dumps(row) + "\n" for row in told))


FORMS = (alpaca, sharegpt, openai_tools)


class Shell:
    """A user's command line: counts commands and seconds, and stops at the first that fails."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.environment, self.commands, self.seconds = folder, environment, 0, 0.0

    def __call__(self, *arguments: str) -> str:
        started = time.monotonic()
        ours = {"HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
        done = subprocess.run(
            [sys.executable, "-m", "alignflow", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env={**os.environ, **ours, **self.environment},
            timeout=400,
            check=False,
        )
        self.commands += 1
        self.seconds += time.monotonic() - started
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        assert done.stderr == "", "no library says anything beside us"
        return done.stdout

    def journey(self, data: Path) -> str:
        """From a file to an answer; only what the commands before have printed is typed."""
        next_step = re.search(r"Next: alignflow run (\S+)", self("init", MODEL, data.name))
        assert next_step is not None
        self("check", next_step[1])
        try_it = re.search(r"alignflow generate (\S+)", self("run", next_step[1]))
        assert try_it is not None
        question = "trucks(id, model)\nHow many trucks are there?"
        return self("generate", try_it[1], question, "--max-new-tokens", "8")


@pytest.mark.timeout(500)
def test_from_a_table_to_an_answer_in_four_commands(tmp_path: Path, mlflow_store: Path) -> None:
    new_home(tmp_path / ".alignflow", mlflow_store)
    shell = Shell(tmp_path)
    assert shell.journey(table(tmp_path)).strip()
    assert (shell.commands, shell.seconds < LONGEST_SECONDS) == (4, True), shell.seconds


@pytest.mark.proof
@pytest.mark.timeout(500)
def test_no_library_says_anything_in_the_commands_around_a_run(
    tmp_path: Path, mlflow_store: Path
) -> None:
    new_home(tmp_path / ".alignflow", mlflow_store)
    shell = Shell(tmp_path)
    shell.journey(table(tmp_path))
    told = [{"prompt": asked, "chosen": said, "rejected": "no"} for asked, said in questions()]
    pairs = lines(tmp_path / "pairs.jsonl", told)
    for command in (("show", "last"), ("doctor",), ("prefs", "add", pairs.name)):
        assert shell(*command)


@pytest.mark.proof
@pytest.mark.timeout(500)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_from_other_forms_to_an_answer_in_four_commands(
    form: Callable[[Path], Path], tmp_path: Path
) -> None:
    shell = Shell(tmp_path)
    assert shell.journey(form(tmp_path))
    assert (shell.commands, shell.seconds < LONGEST_SECONDS) == (4, True), shell.seconds


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.__name__)
def drafted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The recipe that `init` wrote for a form of data, in the working directory it was written in."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    data = request.param(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.exit_code_of(["init", MODEL, data.name, "--yes"]) == 0
        yield folder / f"{data.stem}.yaml"


def test_what_init_writes_passes_check(drafted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code_of(["check", str(drafted), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["recipes"][0]
    (trained,) = (one for one in checked["rows"] if one["part"] == "sft")
    (asked,) = (one for one in checked["rows"] if one["part"] == "evaluation")
    assert trained["dropped"] == {"evaluation_prompt": trained["read"] - trained["kept"]}
    assert 0 < asked["kept"] <= trained["read"] - trained["kept"]
    levels = {finding["level"] for finding in checked["findings"]}
    assert not levels & {"error", "warning"}


def test_every_choice_has_its_reason_and_lines_fit_a_terminal(drafted: Path) -> None:
    text = drafted.read_text().splitlines()
    assert all(len(line) <= 80 or not line.lstrip().startswith("#") for line in text[1:])
    for above, line in pairwise(text):
        if not line.lstrip().startswith("#") and not line.endswith(":"):
            assert "  # " in line or above.lstrip().startswith("# "), line


def test_rows_with_tools_get_a_template_that_writes_tools_and_their_metric(tmp_path: Path) -> None:
    recipe = init(tmp_path, openai_tools(tmp_path))
    assert recipe.base_model.chat_template == "chat.jinja"
    assert "message.tool_calls" in (tmp_path / "chat.jinja").read_text()
    assert recipe.evaluation.metrics == ["tool_call_accuracy"]


def init(folder: Path, *data: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.exit_code_of(["init", MODEL, *(path.name for path in data), "--yes"]) == 0
    return load_recipe(folder / f"{data[0].stem}.yaml")
