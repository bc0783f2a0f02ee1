"""Memory of `prepare` and of opened rows does not grow with their number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FEW, LIMIT_MIB = 1000, 80
PREPARE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from scale_data import MIB, Peak, prepare
home, few, file = map(Path, sys.argv[2:5])
prepare(home.with_name("few"), {"sft": few})  # libraries are loaded
print(prepare(home, {"sft": file})["mib"])
from alignflow.data import StoredRows
(folder,) = home.glob("artifacts/prepare/*/sft/train")
with Peak() as peak:
    rows = StoredRows.of(folder)
    assert len(rows) == len(rows.lengths("input_ids")) == int(sys.argv[5])
    for at in range(0, len(rows), 7):
        assert rows[at]["response"] == f"it is {at}."
print(peak.bytes / MIB)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.proof)])
def test_many_rows_take_the_memory_of_a_thousand(tmp_path: Path, count: int) -> None:
    few, file = tmp_path / "few.jsonl", tmp_path / "rows.jsonl"
    for path, length in ((few, FEW), (file, count)):
        with path.open("w") as lines:
            for n in range(length):
                row = {"prompt": f"which is row {n}?", "completion": f"it is {n}."}
                lines.write(json.dumps(row) + "\n")
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    command = [
        sys.executable,
        "-c",
        PREPARE,
        *map(str, (benchmarks, tmp_path / "home", few, file, count)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prepared, opened = map(float, done.stdout.split())
    assert prepared < LIMIT_MIB and opened < LIMIT_MIB, done.stdout
