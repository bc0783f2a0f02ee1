from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_sft_trains_in_each_mode_and_accounts_for_every_row(
    training_spec: Any, mode: str
) -> None:
    from stage_runs import run_stage, work_of

    spec = training_spec("sft", mode=mode)
    result = run_stage(spec)
    print(result)
    output = work_of(spec) / "output"
    assert (output / ("model" if mode == "full" else "adapter")).is_dir()
    assert result.rows is not None and result.rows.balanced and result.rows.trained == 48
    assert result.metrics["loss"] is not None
