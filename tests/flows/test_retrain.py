"""The flow `retrain` on fake stages: a real Prefect server, ledger and MLflow store."""

from __future__ import annotations

import html
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_runs import executions, states, wait_until
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from retrain_cases import (
    MODEL,
    QUICK_GATE,
    aliases,
    description,
    drop,
    head,
    retrain_recipe,
    served,
    tags,
    undecided,
    where,
)
from webhook import SLUG, saved_webhook

from alignflow.commands.cli import exit_code_of
from alignflow.errors import DataError
from alignflow.gate import contest
from alignflow.ledger import champion, lineage, pending_events, promote
from alignflow.lineage import gating
from alignflow.lineage.by_hand import promote_by_hand, roll_back_by_hand
from alignflow.lineage.registry import Registry, reconcile
from alignflow.pipeline.decision import sentence
from alignflow.tracking import registry_client, tracking_uri
from flows.retrain import retrain
from tasks import approval


@pytest.fixture(autouse=True)
def harness(prefect_server: str, orders: Path) -> None:
    """A Prefect server, and fakes for stages."""


def better(orders: Path, quality: float) -> None:
    """The next candidate gets this share of the prompts right, and its answers are kept."""
    (orders / "answers").touch()
    (orders / "quality").write_text(str(quality))


def test_a_lineage_from_its_founding_to_its_second_generation(
    home: Path, orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = retrain_recipe()
    drop(home, 0, 10)
    waiting: Any = retrain(recipe=recipe, home=home)
    assert "10 new pairs in default since the last verdict" in waiting["text"]
    assert executions(orders) == []

    drop(home, 10, 40)
    better(orders, 0.8)
    first: Any = retrain(recipe=recipe, home=home)
    found = first["retrain"]
    assert found["verdict"] == "promote" and found["champion"] == 0 and found["rows"] == 40
    assert where(home) == (0, 0, 40) and head(home) == 1
    assert [entry.generation for entry in lineage(home, MODEL)] == [0, 1]
    current = champion(home, MODEL)
    assert current is not None and served(home) == current.digest
    assert "candidate" not in aliases(home)
    assert pending_events(home) == []
    assert said(home, "1") == ("founded", "0") and "SFT model" in tags(home, "1")["reason"]
    assert aliases(home) == {"champion": "2"} and said(home, "2") == ("promote", "1")
    assert description(home).startswith("Champion: generation 1, version 2, since ")

    drop(home, 40, 65)
    better(orders, 0.95)
    before = executions(orders)
    second: Any = retrain(recipe=recipe, home=home)
    assert second["retrain"]["continues"] == 1 and second["retrain"]["replayed"] == 6
    assert "sft" not in states(second)
    assert executions(orders)[len(before) :] == [
        "prepare",
        "reward",
        "dpo",
        "evaluate",
        "merge",
        "evaluate",
    ]
    assert head(home) == 2 and where(home) == (0, 0, 65)
    assert "nothing" not in second["retrain"]["outcome"]
    shown = told(home, second, capsys)
    assert tracked(home, second) == f"{MODEL} gen 2"
    assert flow_run_names()[:2] == [f"{MODEL} gen 2 candidate", f"{MODEL} gen 1 candidate"]
    assert flow_run_names()[2] == f"{MODEL}, nothing to do"
    keys = artifact_keys(second)
    assert keys.count(f"{MODEL}-evaluate-metrics") == 1, "the candidate's"
    assert keys.count(f"{MODEL}-champion-evaluate-metrics") == 1
    assert "Promoted: " in shown and f"{MODEL} is generation 2 now." in shown
    assert f"alignflow rollback {MODEL} --reason" in shown and state_names()[0] == "Promoted"
    assert [flip["after"] for flip in second["retrain"]["gate"]["flips"]] == [1.0] * 5
    assert shown.count("fixed   ") == 5 and "champion, wrong" in shown
    dpo = next(line for line in shown.splitlines() if line.startswith("dpo "))
    assert dpo.split()[3:] == ["accuracy", "50.0%", "→", "95.0%", "80.0%"], "the champion's last"
    assert tags(home, second["retrain"]["candidate_version"])["generation"] == "2"


def said(home: Path, version: str) -> tuple[str, str]:
    """Verdict and generation that a version is tagged with; each has a reason too."""
    noted = tags(home, version)
    assert noted["reason"]
    return noted["verdict"], noted["generation"]


def told(home: Path, run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What `show` says of a run, its page saying the same."""
    capsys.readouterr()
    assert exit_code_of(["show", run["run_id"], "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    page = (home / "runs" / run["run_id"] / "report.html").read_text()
    verdict = next(
        line for line in shown.splitlines() if f"{MODEL} " in line and "generation" in line
    )
    assert f"<strong>{verdict}</strong>" in html.unescape(page)
    assert page.index("<strong>") < page.index("<h1>"), "the verdict comes first"
    assert f"<th>champion<br><small>generation {run['retrain']['champion']}</small></th>" in page
    command = next(line[14:] for line in shown.splitlines() if " --reason " in line)
    assert page.index("<strong>") < html.unescape(page).index(command)
    assert "one-sided" in verdict or "min_prompts" in verdict
    assert "accuracy" in shown and "candidate" in shown and "champion" in shown
    texts = [said for said in ("right: 1.0", "Is p") if said in json.dumps(run)]
    assert texts == [], "databases get figures and references"
    return shown


def tracked(home: Path, run: dict[str, Any]) -> str:
    """Name of a run in MLflow, whose description is the verdict, figures and links, no row's text."""
    kept = registry_client(tracking_uri(home)).get_run(run["mlflow"]["run_id"])
    text = kept.data.tags["mlflow.note.content"]
    assert text.startswith(f"**{sentence(run['retrain'])}**")
    assert "question" not in text and str(home / "runs" / run["run_id"]) in text
    assert kept.data.tags["retrain.verdict"] == run["retrain"]["verdict"]
    return str(kept.info.run_name)


def artifact_keys(run: dict[str, Any]) -> list[str]:
    """Of all that Prefect shows of a run."""
    chosen = {"flow_runs": {"id": {"any_": [run["prefect"]["flow_run"]]}}}
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json=chosen).json()
    return [entry["key"] for entry in found]


def flow_run_names() -> list[str]:
    """Of the retrains, newest first."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
    return [run.name for run in runs]


def state_names() -> list[str]:
    """Of the retrains, newest first."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC)
    return [str(run.state_name) for run in runs]


def test_what_is_not_better_gives_its_rows_back_and_does_not_loop(
    home: Path, orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(home, 0, 40)
    better(orders, 0.5)  # no better than the SFT model
    told_of = retrain_recipe().model_copy(update={"notify": SLUG})
    with saved_webhook() as heard:
        equal: Any = retrain(recipe=told_of, home=home)
    [message] = heard
    assert message["subject"] == f"{MODEL}: Rejected"
    assert message["body"].startswith(f"**{sentence(equal['retrain'])}**")
    assert equal["retrain"]["verdict"] == "reject" and "candidate" not in aliases(home)
    assert (where(home), head(home)) == ((40, 0, 0), 0)
    shown = told(home, equal, capsys)
    assert "Rejected: " in shown and f"{MODEL} stays generation 0." in shown
    assert f"alignflow promote {equal['run_id']} --reason" in shown
    assert state_names()[0] == "Rejected"
    assert tracked(home, equal) == f"{MODEL} gen 1 candidate, rejected"
    noted = tags(home, equal["retrain"]["candidate_version"])
    assert noted["verdict"] == "reject" and noted["generation"] == "none"
    assert noted["reason"] == "; ".join(equal["retrain"]["gate"]["reasons"])
    again: Any = retrain(recipe=retrain_recipe(), home=home)
    assert "0 new pairs" in again["text"]
    assert state_names()[0] == "Nothing to do"

    drop(home, 40, 60)
    better(orders, 0.8)
    few = retrain_recipe(gate={**QUICK_GATE, "min_prompts": 300})
    few = few.model_copy(update={"notify": "custom-webhook/nobody"})
    unsure: Any = retrain(recipe=few, home=home)  # that nobody was told fails nothing
    assert unsure["retrain"]["verdict"] == "inconclusive"
    assert unsure["retrain"]["rows"] == 60 and where(home) == (60, 0, 0)
    version = unsure["retrain"]["candidate_version"]
    assert aliases(home)["candidate"] == version
    assert said(home, version) == ("inconclusive", "none")
    assert "Inconclusive: " in told(home, unsure, capsys) and state_names()[0] == "Inconclusive"
    assert tracked(home, unsure) == f"{MODEL} gen 1 candidate, inconclusive"
    assert exit_code_of(["show", "--all", "--home", str(home)]) == 0
    runs = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert runs == [[unsure["run_id"], "Inconclusive"], [equal["run_id"], "Rejected"]]

    by_hand = promote_by_hand(home, unsure["run_id"], None, "a person looked at it")
    assert by_hand.generation.generation == 1 and by_hand.alias.version == version
    assert said(home, version) == ("promote", "1")
    assert tags(home, version)["reason"] == "by hand: a person looked at it"
    assert where(home) == (0, 0, 60)
    assert set(by_hand.generation.artifacts) >= {"prepare", "sft", "dpo", "merge"}
    with pytest.raises(DataError, match="promoted"):
        promote_by_hand(home, unsure["run_id"], None, "again")

    back = roll_back_by_hand(home, MODEL, None, "answers got rude")
    assert back.generation.generation == 0 and served(home) == back.generation.digest
    assert said(home, version) == ("rolled back", "1")
    assert tags(home, version)["reason"] == "answers got rude"
    assert description(home).startswith("Champion: generation 0, version 1, since ")
    assert where(home) == (60, 0, 0)

    rude = by_hand.alias.version
    Registry(home, MODEL).point("champion", rude)
    found = reconcile(home, MODEL)
    assert found.by_hand and f"to version {rude} by hand" in found.text
    assert served(home) == back.generation.digest
    assert not reconcile(home, MODEL).by_hand


def test_the_loser_of_a_race_is_gated_again_against_the_new_champion(
    home: Path, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, 0, 40)
    better(orders, 0.8)
    looks: list[str] = []

    def overtaken(*arguments: Any) -> Any:
        looks.append(arguments[2].champion)
        founder = champion(home, MODEL)
        if len(looks) == 1 and founder is not None:
            promote(
                home, MODEL, expected=0, digest="rival", artifacts=founder.artifacts, reason="race"
            )
        return contest(*arguments)

    monkeypatch.setattr(gating, "contest", overtaken)
    report: Any = retrain(recipe=retrain_recipe(), home=home)
    assert looks[1] == "rival" and report["retrain"]["champion"] == 1
    assert report["retrain"]["generation"] == head(home) == 2 and where(home) == (0, 0, 40)
    assert executions(orders).count("dpo") == 1


@pytest.mark.proof
def test_a_judge_that_is_a_model_answers_in_a_stage_of_its_own(home: Path, orders: Path) -> None:
    drop(home, 0, 40)
    better(orders, 0.8)
    recipe = retrain_recipe(judge={"model": "builtin:freight-base"})
    report: Any = retrain(recipe=recipe, home=home)
    found = report["retrain"]["gate"]
    assert found["verdict"] == "promote" and found["test"] == "sign test"
    assert (found["wins"], found["losses"]) == (60, 0)
    assert found["judge"].startswith("builtin:freight-base@") and head(home) == 1
    assert executions(orders).count("judge") == 1


@pytest.mark.parametrize("agrees", [True, False])
def test_a_promotion_waits_for_a_person(
    agrees: bool, home: Path, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    monkeypatch.setattr(approval, "POLL_SECONDS", 0.2)
    drop(home, 0, 40)
    better(orders, 0.8)
    said = {"promote": agrees, "name": "Ada", "reason": "read fifty answers"}
    seen: list[Any] = []

    def answer() -> None:
        place = home / "work" / "approvals"
        note = wait_until(lambda: next(iter(place.glob("*.json")), None), 100)
        snapshot = undecided(home) or ""
        seen.append((note.name, approval.awaited_elsewhere(home, "default", snapshot)))
        with get_client(sync_client=True) as client:
            paused = wait_until(
                lambda: [run for run in client.read_flow_runs() if run.state_name == "Paused"], 60
            )
            client.resume_flow_run(paused[0].id, run_input=said)

    person = threading.Thread(target=answer)
    person.start()
    report: Any = retrain(recipe=retrain_recipe(approval="required"), home=home)
    person.join()
    assert seen[0][1] is not None and "waits for approval" in seen[0][1]
    reasons = report["retrain"]["gate"]["reasons"]
    if agrees:
        assert head(home) == 1 and "approved by Ada: read fifty answers" in reasons
    else:
        assert head(home) == 0 and where(home) == (40, 0, 0)
        assert reasons[0] == "Ada did not approve: read fifty answers"
    assert not list((home / "work" / "approvals").iterdir())
