"""A reward model that is too weak for PPO: DPO takes its place where the recipe says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import executions, fake_recipe, states

from alignflow.pipeline.report import load_report, print_report
from flows.finetune import finetune


@pytest.fixture(autouse=True)
def harness(prefect_server: str, orders: Path) -> None:
    """A Prefect server, and fakes for stages; their reward model is measured on no pair."""


def test_dpo_takes_the_place_of_ppo_and_the_report_says_why(
    home: Path, orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    recipe = fake_recipe(method="ppo", ppo={"on_weak_reward": "dpo"}, dpo={})
    report = finetune(recipe=recipe, home=home, run_id="fallback")
    assert executions(orders) == ["prepare", "sft", "reward", "dpo", "evaluate", "merge"]
    assert states(report)["ppo"] == "skipped"
    assert list(states(report)) == ["prepare", "sft", "reward", "ppo", "dpo", "evaluate", "merge"]
    (skipped,) = (stage for stage in report["stages"] if stage["stage"] == "ppo")
    assert "The reward model was not measured" in skipped["error"]
    assert "dpo takes PPO's place" in skipped["error"]
    assert report["adapter"].endswith("/adapter")
    assert "/dpo/" in report["adapter"]
    print_report(load_report(home, "fallback"), Console(width=400))
    assert "dpo takes PPO's place" in capsys.readouterr().out
