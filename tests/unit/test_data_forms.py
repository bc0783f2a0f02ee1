from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignflow.data.demonstrations import demonstration
from alignflow.data.feedback import pairs_of
from alignflow.data.reading import read_source
from alignflow.data.rejected import BadRow
from alignflow.data.template import ChatTemplate, TemplateRejects
from alignflow.data.turns import conversation, first_user_turn
from alignflow.errors import DataError
from alignflow.recipe import DataSource

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "q"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}


def read(path: Path | str, **options: Any) -> list[Any]:
    return [*read_source(DataSource(source=str(path), **options), seed=0)]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "ü"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "e.csv").write_text("prompt,completion\na,b\nc,ü\n")
    for path in sorted(tmp_path.iterdir()):
        assert [row.fields for row in read(path)] == rows, path.name
    assert len(read(tmp_path / "*")) == 10


def test_a_bad_line_keeps_its_place_and_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n[1]\n\n{"text": "b"}\n')
    rows = read(path)
    assert [row.problem for row in rows] == [None, "not_json", "not_an_object", None]
    assert rows[1].place == f"{path}:2"


def test_columns_are_mapped_and_a_share_is_drawn_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"q": str(n), "a": "x"}) + "\n" for n in range(100)))
    rows = read(path, columns={"prompt": "q", "completion": "a"}, weight=0.1)
    assert 1 <= len(rows) <= 30 and set(rows[0].fields) == {"prompt", "completion"}
    assert rows == read(path, columns={"prompt": "q", "completion": "a"}, weight=0.1)
    more = read(path, columns={"prompt": "q", "completion": "a"}, weight=0.5)
    assert [row for row in more if row in rows] == rows, "a larger share holds the smaller one"
    assert len(read(path, weight=1e-9)) == 1, "some row is drawn"


def test_an_empty_file_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match="empty"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="unknown kind"):
        read(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "completion": "yes"},
        {"prompt": [USER], "completion": [YES]},
        {"messages": [USER, YES]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]},
    ],
)
def test_demonstrations_of_every_form_are_one_conversation(fields: dict[str, Any]) -> None:
    assert demonstration(fields).messages == [USER, YES]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"q": "x"}, "missing_columns"),
        ({"prompt": "q", "completion": " "}, "empty"),
        ({"messages": [USER]}, "no_response"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown_role"),
        ({"messages": "x"}, "no_response"),
        ({"messages": [USER, 3]}, "not_messages"),
    ],
)
def test_a_bad_demonstration_says_why(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        demonstration(fields)
    assert caught.value.reason == reason


DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant:"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "q", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": DIALOGUE + " yes", "rejected": DIALOGUE + " no"},
    ],
)
def test_pairs_of_every_form_are_a_prompt_and_two_answers(fields: dict[str, Any]) -> None:
    (pair,) = pairs_of(fields)
    assert pair.prompt[-1] == USER
    assert (pair.chosen, pair.rejected) == ([YES], [NO])


def test_equal_answers_are_a_bad_row() -> None:
    with pytest.raises(BadRow) as caught:
        pairs_of({"prompt": "q", "chosen": "x", "rejected": "x"})
    assert caught.value.reason == "equal_responses"


def test_every_response_of_a_dialogue_is_marked() -> None:
    template, messages = ChatTemplate(CHATML, {}), [USER, YES, USER, NO]
    (rendered,) = template.rendered(messages, special=["<|im_end|>"])
    assert [rendered.text[start:end] for start, end in rendered.responses] == [
        "yes<|im_end|>",
        "no<|im_end|>",
    ]
    assert template.render(messages) == rendered.text + "\n"


def test_a_template_that_rewrites_earlier_turns_gives_a_text_per_response() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last or m.role == 'user' else '...' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    first, second = ChatTemplate(source, {}).rendered([USER, YES, USER, NO])
    assert first == ("<user>q<assistant>yes", 1, [(18, 21)])
    assert second == ("<user>q<assistant>...<user>q<assistant>no", 3, [(39, 41)])


def test_a_template_runs_in_a_sandbox_and_its_refusal_is_told() -> None:
    with pytest.raises(TemplateRejects):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", {}).render([USER])
    with pytest.raises(TemplateRejects, match="no system role"):
        ChatTemplate("{{ raise_exception('no system role') }}", {}).render([USER])
    with pytest.raises(DataError, match="does not parse"):
        ChatTemplate("{% if %}", {})


def test_prompts_that_differ_in_case_or_spaces_only_are_the_same() -> None:
    asked = first_user_turn(conversation("  How  MANY? "))
    assert asked == first_user_turn(conversation("how many?"))
