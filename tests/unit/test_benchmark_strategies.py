"""The arithmetic behind the table of strategies."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def strategies(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("strategies")


RUNS = {
    "lora 0.001": {"accuracy": 0.70, "sampled_accuracy": 0.5, "forgetting": 0.05},
    "lora 0.002": {"accuracy": 0.80, "sampled_accuracy": 0.5, "forgetting": 0.20},
    "full 0.0001": {"accuracy": 0.75, "sampled_accuracy": 0.5, "forgetting": 0.10},
    "full 0.0002": {"accuracy": 0.82, "sampled_accuracy": 0.5, "forgetting": 0.60},
}


def test_the_least_forgetting_is_that_of_any_rate_which_reaches_the_accuracy(
    strategies: Any,
) -> None:
    assert strategies.least_forgetting(RUNS, "lora", 0.70) == 0.05
    assert strategies.least_forgetting(RUNS, "lora", 0.72) == 0.20
    assert strategies.least_forgetting(RUNS, "full", 0.80) == 0.60
    assert strategies.least_forgetting(RUNS, "lora", 0.81) is None


def test_the_table_compares_only_seeds_in_which_both_reach_an_accuracy(strategies: Any) -> None:
    low = {
        name: {**figures, "accuracy": figures["accuracy"] - 0.1} for name, figures in RUNS.items()
    }
    lines = strategies.forgetting_table([RUNS, low, RUNS]).splitlines()
    at_80 = next(line for line in lines if line.startswith("| 80 %"))
    assert at_80 == "| 80 % | 0.200 ± 0.000 | 0.600 ± 0.000 | -0.400 ± 0.000 | 2 of 3 |"
    assert not any(line.startswith("| 82 %") for line in lines)


def test_forgetting_is_the_rise_of_the_loss_in_nats(strategies: Any) -> None:
    found = strategies.forgetting(
        {"base": {"perplexity_general": 2.0}, "sft": {"perplexity_general": 6.0}}, "sft"
    )
    assert found == pytest.approx(math.log(3))


def test_every_aligned_model_is_compared_with_its_sft_and_with_the_quickstart(
    strategies: Any,
) -> None:
    def figures(accuracy: float) -> dict[str, float]:
        names = ("sampled_accuracy", "unsafe_rate", "paraphrase_accuracy", "forgetting")
        rest = dict.fromkeys(names, 0.0)
        cost = {"seconds sft": 9.0, "peak_bytes": 2.0**30, "trainable": 1000.0}
        return {"accuracy": accuracy, **rest, **cost}

    seed = {
        "quickstart: sft": figures(0.5),
        "quickstart: dpo": figures(0.8),
        "quickstart-ppo: sft": figures(0.5),
        "quickstart-ppo: ppo": figures(0.75),
        "quickstart-orpo: orpo": figures(0.9),
    }
    text = strategies.differences([seed, seed])
    assert "- quickstart-ppo: ppo over quickstart-ppo: sft: greedy 25.0 ± 0.0" in text
    assert "- quickstart-ppo: ppo over quickstart: dpo: greedy -5.0 ± 0.0" in text
    assert "- quickstart-orpo: orpo over quickstart: dpo: greedy 10.0 ± 0.0" in text
    rows = strategies.table([seed, seed]).splitlines()
    assert len(rows) == 2 + len(seed)
    assert "| 1,000 | 1.00 | sft 9 |" in rows[2]


def test_a_strategy_is_not_worse_only_where_the_whole_interval_is_above_the_margin(
    strategies: Any,
) -> None:
    """Differences of 0, -2 and +2 points: mean 0, half-width 4.303 * 2 / sqrt(3) = 4.97 points."""
    seeds = [
        {
            "quickstart: dpo": {"accuracy": 0.9, "sampled_accuracy": 0.8},
            "other: orpo": {"accuracy": 0.9 + apart, "sampled_accuracy": 0.8 + 2 * apart},
        }
        for apart in (0.0, -0.02, 0.02)
    ]
    line = strategies.not_worse(seeds).splitlines()[-1]
    assert line == "- other: orpo: greedy yes (at worst -5.0), sampled not shown (at worst -9.9)"
