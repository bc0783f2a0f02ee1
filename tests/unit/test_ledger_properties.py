from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import content, row, swapped, write

from alignflow.data.feedback import Rating, preferences_of
from alignflow.data.rejected import BadRow
from alignflow.ledger import add, freeze, quarantined
from alignflow.ledger.parsing import Line, fields_of

FEW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

votes = st.tuples(
    st.integers(0, 6), st.booleans(), st.sampled_from([None, "ann", "bob", "cyd"])
).map(lambda v: _vote(*v))


def _vote(number: int, contrary: bool, annotator: str | None) -> dict[str, Any]:
    pair = row(number, **({"annotator": annotator} if annotator else {}))
    return swapped(pair) if contrary else pair


@st.composite
def arrangements(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Rows, and the same rows in another order, cut into files, some of them twice."""
    rows = draw(st.lists(votes, min_size=1, max_size=14))
    repeated = draw(st.lists(st.sampled_from(rows), max_size=5))
    shuffled = draw(st.permutations(rows + repeated))
    cuts = sorted(draw(st.sets(st.integers(1, len(shuffled)), max_size=4)))
    files = [
        shuffled[start:end]
        for start, end in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)
        if start < end
    ]
    again = draw(st.lists(st.sampled_from(files), max_size=2))
    return rows, files + again


def ledger_of(files: list[list[dict[str, Any]]]) -> tuple[dict[str, Any], str | None]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for number, rows in enumerate(files):
            add(home, [write(Path(folder) / f"{number}.jsonl", rows)])
        found = content(home)
        trained = any(not entry[3] and not entry[4] for entry in found.values())
        return found, freeze(home).digest if trained else None


@pytest.mark.slow
@FEW
@given(arrangements())
def test_order_files_and_repeats_do_not_change_the_ledger_or_its_snapshot(
    arrangement: tuple[list[dict[str, Any]], list[list[dict[str, Any]]]],
) -> None:
    rows, files = arrangement
    assert ledger_of([rows]) == ledger_of(files)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_damage_to_one_line_loses_no_neighbour(data: st.DataObject) -> None:
    lines = [json.dumps(row(number)).encode() for number in range(6)]
    hit = data.draw(st.integers(0, 5))
    line = bytearray(lines[hit])
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(line) - 1))
        line[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != 10))
    lines[hit] = bytes(line)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(b"\n".join(lines))
        result = add(Path(folder) / "home", [path])
        found = content(Path(folder) / "home")
        bad = quarantined(Path(folder) / "home")
    kept = {json.loads(entry[0])[0]["content"] for entry in found.values()}
    assert {f"question {number}" for number in range(6) if number != hit} <= kept
    assert result.counts.accepted + len(bad) >= 5 and len(bad) <= 1


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_object_or_a_bad_row(raw: bytes) -> None:
    try:
        assert isinstance(fields_of(Line(0, len(raw), raw, len(raw))), dict)
    except BadRow as bad:
        assert bad.reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "score", "from"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = ["prompt", "chosen", "rejected", "responses", "scores", "completion", "label", "ranks"]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=5))
def test_any_object_is_pairs_or_a_bad_row(fields: dict[str, Any]) -> None:
    try:
        found = preferences_of(fields)
    except BadRow:
        return
    for pair in [] if isinstance(found, Rating) else found:
        assert pair.chosen and pair.rejected and pair.chosen != pair.rejected
        assert json.loads(pair.prompt)
