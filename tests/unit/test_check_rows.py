"""The data: sources, columns, forms, lengths; and templates that are wrong or hostile."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from check_cases import (
    checked,
    demonstrations,
    errors,
    lines,
    model_copy,
    without_children,
    write_rows,
)

from alignflow.checking import template as template_module
from alignflow.checking.sandbox import run_limited
from alignflow.checking.template import template_findings
from alignflow.errors import DataError
from alignflow.recipe import ModelSource

pytestmark = pytest.mark.slow  # each check reads the tokenizer in a child


def test_the_embedded_job_is_accounted_for(tmp_path: Path) -> None:
    found = checked(tmp_path)
    assert errors(found) == []
    rows = {account.part: account for account in found.rows}
    assert set(rows) == {"sft", "preferences", "evaluation", "general"}
    assert rows["sft"].read == rows["sft"].kept == 960
    assert rows["sft"].longest_tokens is not None and rows["sft"].longest_tokens < 192
    assert not rows["sft"].sampled


def test_lengths_are_those_of_prepare(tmp_path: Path) -> None:
    """The plain tokenizer gives the ids that the Transformers tokenizer gives."""
    from transformers import AutoTokenizer

    from alignflow.builtin import base_model_directory
    from alignflow.data.plain_tokenizer import PlainTokenizer

    directory = base_model_directory("freight-base")
    ours, theirs = PlainTokenizer(directory), AutoTokenizer.from_pretrained(str(directory))
    for text in ("Which trucks are in Lyon?", "<|im_start|>user\nhé 🚚<|im_end|>\n", ""):
        assert ours.encode(text, False) == theirs.encode(text, add_special_tokens=False)
    assert (ours.eos_token, ours.bos_token_id) == (theirs.eos_token, theirs.bos_token_id)


@pytest.mark.parametrize("full", [False, True])
def test_a_large_source_is_sampled_and_labelled_so(tmp_path: Path, full: bool) -> None:
    source = write_rows(tmp_path / "rows.jsonl", demonstrations(1500))
    found = checked(tmp_path, data__sft=source, full=full)
    account = found.rows[0]
    assert (account.read, account.looked_at, account.sampled) == (
        1500,
        1500 if full else 1000,
        not full,
    )
    assert account.expected == 1500


def test_an_absent_file_is_65_and_named(tmp_path: Path) -> None:
    found = checked(tmp_path, data__sft="absent.jsonl", data__general="nope/*.txt")
    assert found.exit_code == 65
    assert "data.sft: absent.jsonl: no such file" in lines(found, "error")
    assert "data.general: nope/*.txt: no such file" in lines(found, "error")


def test_an_empty_data_set_is_65(tmp_path: Path) -> None:
    found = checked(tmp_path, data__sft=write_rows(tmp_path / "rows.jsonl", []))
    assert found.exit_code == 65
    assert "the data set is empty" in lines(found, "error")


def test_an_unknown_builtin_is_64_and_lists_those_there_are(tmp_path: Path) -> None:
    found = checked(tmp_path, data__sft="builtin:fright-sft")
    assert found.exit_code == 64
    assert "There are builtin:freight-development" in lines(found, "error")


def test_missing_columns_are_65_and_mapping_them_repairs_it(tmp_path: Path) -> None:
    rows = [{"ask": row["prompt"], "say": row["completion"]} for row in demonstrations(40)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    found = checked(tmp_path, data__sft=source)
    assert found.exit_code == 65
    assert "lacks the columns text; or prompt and completion; or messages (" in lines(
        found, "error"
    )
    assert "has ['ask', 'say']" in lines(found, "error")
    mapped = {"source": source, "columns": {"prompt": "ask", "completion": "say"}}
    assert errors(checked(tmp_path, data__sft=mapped)) == []


def test_more_bad_rows_than_allowed_are_65_with_the_first_of_each_kind(tmp_path: Path) -> None:
    rows = demonstrations(30) + demonstrations(10, words=300) + [{"prompt": "a"}] * 10
    source = write_rows(tmp_path / "rows.jsonl", rows)
    found = checked(tmp_path, data__sft=source)
    assert found.exit_code == 65
    message = lines(found, "error")
    assert "loses 20 of 50 rows" in message and "too_long 10" in message
    assert f"{source}:31:" in message and "tokens, at most 192" in message
    allowed = checked(tmp_path, data__sft=source, data__max_dropped_share=0.5)
    assert errors(allowed) == []
    assert allowed.rows[0].over_limit == 10


def test_the_form_of_rows_and_the_columns_that_were_not_read_are_said(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"list truck {n}", "input": "now", "output": "select name", "topic": "x"}
        for n in range(40)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    found = checked(tmp_path, data__sft=source)
    assert f"data.sft: {source}: form alpaca; columns not read: topic" in lines(found, "note")
    assert (found.rows[0].kept, found.rows[0].forms) == (40, {"alpaca": 40})


def test_rows_that_fit_two_forms_are_refused_with_the_line_that_decides(tmp_path: Path) -> None:
    rows = [
        {**row, "instruction": row["prompt"], "output": row["completion"]}
        for row in demonstrations(40)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    found = checked(tmp_path, data__sft=source)
    assert found.exit_code == 65
    assert "fits the forms prompt-completion, alpaca. Say which" in lines(found, "error")
    decided = checked(tmp_path, data__sft={"source": source, "form": "alpaca"})
    assert errors(decided) == [] and decided.rows[0].forms == {"alpaca": 40}
    unknown = checked(tmp_path, data__sft={"source": source, "form": "alpaka"})
    assert "no form is named 'alpaka'; there are alpaca," in lines(unknown, "error")


def test_a_column_that_changes_what_rows_mean_is_no_column_to_leave_out(tmp_path: Path) -> None:
    rows = [{**row, "input": "of Lyon"} for row in demonstrations(40)]
    found = checked(tmp_path, data__sft=write_rows(tmp_path / "rows.jsonl", rows))
    assert found.exit_code == 65 and "has input, which the form" in lines(found, "error")
    rows = [{**row, "images": ["a.png"]} for row in demonstrations(40)]
    found = checked(tmp_path, data__sft=write_rows(tmp_path / "rows.jsonl", rows))
    assert "has images; alignflow trains on text alone" in lines(found, "error")


def test_pairs_that_are_equal_are_counted(tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"p {n}", "chosen": "yes", "rejected": "no" if n else "yes"} for n in range(40)
    ]
    source = write_rows(tmp_path / "pairs.jsonl", pairs)
    found = checked(tmp_path, data__preferences=source)
    account = next(rows for rows in found.rows if rows.part == "preferences")
    assert (account.kept, account.dropped) == (39, {"equal_responses": 1})


def test_rows_on_evaluation_prompts_are_dropped(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", demonstrations(40))
    judged = write_rows(
        tmp_path / "judged.jsonl", [{"prompt": f"list truck {n}", "target": "x"} for n in range(20)]
    )
    found = checked(
        tmp_path, data__sft=source, data__evaluation=judged, evaluation__metrics=["overlap"]
    )
    assert found.rows[0].dropped == {"evaluation_prompt": 20}
    assert errors(found) == []


def test_too_few_updates_are_said(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", demonstrations(20))
    found = checked(tmp_path, data__sft=source)
    assert "sft.batch_size: is 16: 20 rows make only 2 updates" in lines(found, "advice")


def findings_of(tmp_path: Path, source: str | None) -> str:
    with without_children():
        return findings_of_the_child(tmp_path, source)


def findings_of_the_child(tmp_path: Path, source: str | None) -> str:
    model = model_copy(tmp_path)
    if source is None:
        (model / "chat_template.jinja").unlink()
    else:
        (model / "chat_template.jinja").write_text(source)
    _, findings = template_findings(model, ModelSource(source=str(model)), needed=True)
    return "\n".join(finding.line for finding in findings)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "the tokenizer has none, and rows are conversations"),
        ("{% for m in messages %}", "does not parse"),
        ("{{ raise_exception('only tools') }}", "rejects a user and assistant conversation: only"),
        ("{{ messages.__class__.__mro__ }}", "rejects a user and assistant conversation"),
        ("x" * 10, "is not the beginning"),
    ],
)
def test_a_template_that_is_missing_or_rejects_roles_is_65(
    tmp_path: Path, source: str | None, expected: str
) -> None:
    assert expected in findings_of(tmp_path, source)
    found = checked(tmp_path, base_model=str(tmp_path / "model"))
    assert found.exit_code == 65
    assert "base_model.chat_template" in lines(found, "error")


def test_a_template_that_rejects_only_system_messages_is_a_note(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert "rejects a system message (no system)" in findings_of(tmp_path, source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 30000000000 }}",
    ],
)
def test_a_hostile_template_ends_with_its_child(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "SECONDS", 3.0)
    started = processor_seconds()
    assert "It is not safe to use" in findings_of_the_child(tmp_path, source)
    assert processor_seconds() - started < 10


def processor_seconds() -> float:
    """Of all children that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_child_that_waits_for_a_core_is_not_taken_for_one_that_never_ends() -> None:
    assert run_limited("time:sleep", 2.5, seconds=2, memory_bytes=2**30, what="it") is None


def test_an_error_of_the_child_keeps_its_exit_code() -> None:
    model = {"source": "/nowhere", "chat_template": "/nowhere.jinja"}
    payload = {"directory": "/nowhere", "model": model}
    with pytest.raises(DataError, match="cannot be read"):
        run_limited(
            "alignflow.checking.template:probe", payload, seconds=20, memory_bytes=2**30, what="it"
        )
