"""Whatever a row holds, it is one row that is dropped, with its reason, and its neighbours are none the worse.

ALIGNFLOW_EXAMPLES is how many rows are tried of each kind.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_forms import DEMONSTRATIONS, PAIRS, RATINGS
from ledger_cases import row, write

from alignflow.builtin import base_model_directory
from alignflow.data import PlainTokenizer, load_template
from alignflow.data.asked import Asked
from alignflow.data.file_rows import RawRow, read_file
from alignflow.data.parts import PARTS
from alignflow.data.rows import Rules, account_of, outcome_of
from alignflow.data.tokens import Encoder
from alignflow.ledger import add, renew_holdout
from alignflow.ledger.batches import parsed
from alignflow.ledger.parsing import Line
from alignflow.recipe import DataSource

EXAMPLES = int(os.environ.get("ALIGNFLOW_EXAMPLES", "250"))
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="ALIGNFLOW_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
FEW = settings(MANY, max_examples=max(3, EXAMPLES // 100))
ROWS = [
    *(entry[1] for entry in (*DEMONSTRATIONS, *PAIRS, *RATINGS)),
    {"text": "a text"},
    {"prompt": "q", "target": {"a": 1}, "group": "test"},
    {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "annotator": "ann", "split": "train"},
]
texts = st.sampled_from(
    [
        *("", " ", "q", "user", "assistant", "tool", "system", "train", "true", "half \ud800"),
        *("a\0b", "[", "{}", '[{"role": "user"}]', '{"name": "f"}', "<image>", "Human: a"),
        *("\n\nHuman: q\n\nAssistant: yes", "left", "x" * 3000),
    ]
)
anything = st.recursive(
    texts | st.text(max_size=4) | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("role", "content", "from", "value", "type", "text", "tool_calls", "name"),
                    *("arguments", "function", "replies", "rank", "score", "prompt", "messages"),
                    "weight",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
columns = st.sampled_from(
    sorted({name for fields in ROWS for name in fields} | {"images", "weight"})
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a value of JSON, but the whole."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, entry in inner:
        yield (*at, name)
        if isinstance(entry, (dict, list)):
            yield from places(entry, (*at, name))


@st.composite
def odd_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A good row with up to three values in it replaced by any others, or a column more."""
    fields = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(fields))
        if not known or draw(st.integers(0, 4)) == 0:
            fields[draw(columns)] = draw(anything)
            continue
        *path, last = draw(st.sampled_from(known))
        place: Any = fields
        for name in path:
            place = place[name]
        place[last] = draw(anything)
    return fields


@pytest.fixture(scope="module")
def rules() -> Rules:
    directory = base_model_directory("freight-base")
    encoder = Encoder(PlainTokenizer(directory), load_template(directory))
    return Rules(encoder, dict.fromkeys(PARTS, 512), 0.1, Asked.of([]), frozenset())


@MANY
@given(fields=odd_rows(), part=st.sampled_from(sorted(PARTS)))
def test_any_row_of_a_file_is_used_or_has_its_reason(
    fields: dict[str, Any], part: str, rules: Rules
) -> None:
    outcome = outcome_of(part, RawRow("a:1", fields), rules)
    assert (outcome.dropped is None) == (not outcome.message)
    assert bool(outcome.columns) == (outcome.dropped is None)
    assert account_of(part, DataSource(source="a"), [outcome]).rows.balanced


@MANY
@given(fields=odd_rows())
def test_any_row_of_the_ledger_is_taken_or_has_its_reason(fields: dict[str, Any]) -> None:
    lines = [json.dumps(entry).encode() for entry in (row(1), fields, row(2))]
    batch = parsed([Line(n, n + 1, line, len(line)) for n, line in enumerate(lines)])
    assert {pair.preference.chosen for pair in batch.pairs} >= {
        row(1)["chosen"],
        row(2)["chosen"],
    }
    assert {bad.offset for bad in batch.bad} <= {1}
    assert all(bad.reason and bad.message for bad in batch.bad)


@FEW
@given(odd=st.lists(odd_rows(), min_size=20, max_size=40))
def test_no_row_harms_a_neighbour_on_its_way_into_the_ledger(
    odd: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    good = [row(number) for number in range(60)]
    home: Path = folder / "home"
    renew_holdout(home, 0.0)
    among = [entry for pair in zip(good, odd, strict=False) for entry in pair]
    rest = good[len(odd) :]
    added = add(home, [write(folder / "a.jsonl", [*among, *rest])])
    assert not added.refused and added.counts.accepted >= len(good)
    once = add(home, [write(folder / "b.jsonl", good)])
    assert (once.counts.accepted, once.counts.duplicates) == (0, len(good))


@MANY
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["jsonl", "json", "csv", "txt"]))
def test_any_bytes_are_rows_or_no_file_of_rows(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from alignflow.errors import DataError

    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(content)
    try:
        rows = list(read_file(path))
    except DataError as error:
        assert str(path) in error.message
        return
    assert all((raw.fields is None) == (raw.problem is not None) for raw in rows)
