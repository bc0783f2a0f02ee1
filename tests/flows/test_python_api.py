"""The Python API on fake stages: what `alignflow run` and the flows do, without Prefect."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import STAGES, executions, fake_recipe, new_home, states
from retrain_cases import QUICK_GATE, aliases, drop, head, retrain_recipe, served, undecided, where
from rich.console import Console

import alignflow as af
from alignflow.errors import DataError, RecipeError
from alignflow.ledger import champion, pending_events
from alignflow.lineage.by_hand import promote_by_hand
from alignflow.pipeline import progress, retries
from alignflow.pipeline.retries import may_come_back, with_retries
from alignflow.stages.events import EVENTS_FILE, read_events

DOCS = Path(__file__).parents[2] / "docs" / "python.md"
LIBRARIES = "('torch', 'transformers', 'mlflow', 'prefect')"


def comparable(report: dict[str, Any], home: Path) -> dict[str, Any]:
    """A report without what differs from run to run: names, times, and where MLflow keeps it."""
    text = json.dumps(report).replace(str(home), "HOME")
    content = json.loads(re.sub(r'"mlflow_run_id": "\w+"', '"mlflow_run_id": "ID"', text))
    for timed in (content, *content["stages"]):
        assert timed.pop("seconds") >= 0
    assert content.pop("run_id") and content["mlflow"].pop("run_id") and content.pop("ended")
    assert content.pop("cost")["processor_hours"] > 0
    return content


def test_prefect_and_plain_python_leave_the_same_keys_and_the_same_report(
    prefect_server: str, home: Path, orders: Path, mlflow_store: Path, tmp_path: Path
) -> None:
    from flows.finetune import finetune

    other = new_home(tmp_path / "other", mlflow_store)
    recipe = fake_recipe(method="ppo", ppo={"on_weak_reward": "dpo"}, dpo={})
    through_prefect = finetune(recipe=recipe, home=home)
    report = af.run(recipe, home=other, progress=False)
    assert [stage.key for stage in report.stages] == [
        stage["key"] for stage in through_prefect["stages"]
    ]
    shown = comparable(through_prefect, home)
    assert shown.pop("prefect")["url"].startswith("http")
    assert comparable(report, other) == shown
    assert "dpo takes PPO's place" in report.stages[3].error
    assert executions(orders) == 2 * ["prepare", "sft", "reward", "dpo", "evaluate", "merge"]


def test_what_may_pass_is_retried_what_will_not_is_not_and_the_rest_is_cached(
    home: Path, orders: Path
) -> None:
    (orders / "sft").write_text("fail_twice:67")
    (orders / "dpo").write_text("fail:65")
    with pytest.raises(DataError, match="asked to fail with 65"):
        af.run(fake_recipe(), home=home, run_id="failed", progress=False)
    failed = af.load_report(home, "failed")
    assert failed.status == "failed" and states(failed)["dpo"] == "failed"
    sft = failed.stages[1]
    assert sft.attempts == 3 and sft.artifact is not None
    started = [e for e in read_events(sft.artifact / EVENTS_FILE) if e["kind"] == "started"]
    assert [e["compute"]["micro_batch_size"] for e in started] == ["auto", 4, 2]
    (orders / "dpo").unlink()
    report = af.run(fake_recipe(), home=str(home), progress=False)
    done = dict.fromkeys(STAGES, "completed")
    assert states(report) == done | dict.fromkeys(("prepare", "sft", "reward"), "cached")
    assert executions(orders).count("sft") == 3 and executions(orders).count("dpo") == 2


def test_a_report_has_names_for_what_is_in_it_and_shows_itself(
    home: Path, orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = af.run(
        fake_recipe(tracking={"registered_model": "served"}), home=home, run_id="<b>run</b>"
    )
    assert "sft        completed" in capsys.readouterr().err
    assert report == af.load_report(home, report.run_id)
    assert report.status == "completed" and report.retrain is None
    assert report.merged_model == f"{report.stages[-1].artifact}/model"
    assert report.stages[0].rows.read == 3 and report.stages[1].metrics == {"accuracy": 0.5}
    html = report._repr_html_()
    assert "&lt;b&gt;run&lt;/b&gt;" in html and "<b>run" not in html
    assert [axis.get_title() for axis in report.plot().axes] == ["sft", "reward", "dpo"]
    assert repr(report).startswith("<Report <b>run</b>: completed in ")
    moved = promote_by_hand(home, report.run_id, None, "by its report's own name")
    assert moved.generation.model == "served" and champion(home, "fake") is None


def test_a_retrain_from_waiting_to_a_promoted_champion(home: Path, orders: Path) -> None:
    drop(home, 0, 10)
    waiting = af.retrain(retrain_recipe(), home=home, progress=False)
    assert isinstance(waiting, af.Waiting) and waiting.status == "waiting"
    assert "10 new pairs in default since the last verdict" in waiting.text
    drop(home, 10, 40)
    (orders / "quality").write_text("0.8")
    report = af.retrain(retrain_recipe(), home=home, reason="notebook", progress=False)
    assert isinstance(report, af.Report) and report.retrain is not None
    assert report.retrain["verdict"] == "promote" and report.retrain["reason"] == "notebook"
    assert report.retrain["generation"] == head(home) == 1 and where(home) == (0, 0, 40)
    current = champion(home, "fake")
    assert current is not None and served(home) == current.digest
    assert "candidate" not in aliases(home)
    assert [event.event for event in pending_events(home)].count("alignflow.champion.promoted") == 2


def test_what_a_person_has_to_approve_is_refused_outside_prefect(home: Path, orders: Path) -> None:
    asks = retrain_recipe(approval="required")
    drop(home, 0, 40)
    with pytest.raises(RecipeError, match="a person answers in the Prefect UI"):
        af.retrain(asks, home=home, progress=False)
    assert undecided(home) is None and executions(orders) == []

    from alignflow.ledger import freeze

    freeze(home, recipe=asks.model_dump_json())  # as a deployed run does that was killed then
    with pytest.raises(RecipeError, match=r"retrain\.approval is required"):
        af.retrain(retrain_recipe(gate=QUICK_GATE), home=home, progress=False)
    assert undecided(home) is not None and executions(orders) == []


def test_a_registry_that_was_away_is_asked_again_and_our_own_no_is_final(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    answers = iter([ConnectionError("away"), af.AlignflowError("no")])

    def ask() -> None:
        raise next(answers)

    with pytest.raises(af.AlignflowError, match="no"):
        with_retries(ask, (5.0, 30.0), may_come_back)
    assert waits == [5.0]


def test_a_notebook_gets_bars_where_it_can_draw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    for widgets in (True, False):
        monkeypatch.setattr(progress, "_has_widgets", lambda widgets=widgets: widgets)
        console = Console(file=io.StringIO(), force_jupyter=True)
        monkeypatch.setattr(progress, "Progress", lambda *_, **__: Shown())
        with progress.shown_on(console):
            shown += [type(each).__name__ for each in progress._observers.get()]
    assert shown == ["Bars", "Lines"]


class Shown:
    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""


def test_importing_the_library_and_its_names_loads_nothing_heavy() -> None:
    code = (
        "import sys, alignflow as af\n"
        f"heavy = lambda: [m for m in {LIBRARIES} if m in sys.modules]\n"
        "assert not heavy() and 'alignflow.recipe' not in sys.modules and af.__version__\n"
        "assert 'run' in af.__all__ and set(af.__all__) <= set(dir(af))\n"
        "assert all(getattr(af, name) for name in af.__all__)\n"
        "assert not heavy(), heavy()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOCS.parents[1])


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_the_examples_of_the_documentation_run(home: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks) + "\nimport sys\nassert 'prefect' not in sys.modules\n")
    subprocess.run(
        [sys.executable, str(script)],
        check=True,
        cwd=DOCS.parents[1],
        env=python_environment(home),
    )


def python_environment(home: Path) -> dict[str, str]:
    """Where the example leaves its results: in the home of the test."""
    import os

    return {**os.environ, "ALIGNFLOW_HOME": str(home), "PYTHONPATH": str(DOCS.parents[1])}
