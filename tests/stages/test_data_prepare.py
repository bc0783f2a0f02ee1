"""Stage `prepare` on a tiny tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_runs import CHAT_TEMPLATE, prepare_spec, question, run_stage, work_of, write_lines

from alignflow.builtin import base_model_directory
from alignflow.data.stored import StoredRows
from alignflow.data.template import load_template
from alignflow.errors import ArtifactError, DataError
from alignflow.files import digest_directory, hash_files
from alignflow.models.loading import read_base
from alignflow.stages.artifacts import Artifact

BOS, EOS = 0, 1


def rows_of(directory: Path, name: str) -> list[dict[str, Any]]:
    return [*StoredRows.of(directory / name)]


def test_a_conversation_begins_with_one_bos_and_ends_with_eos_in_the_loss(
    prepared: Artifact,
) -> None:
    for row in rows_of(prepared.directory, "sft/train"):
        assert row["input_ids"].count(BOS) == 1 and row["input_ids"][0] == BOS
        assert row["input_ids"][-1] == EOS and row["completion_mask"][-1] == 1


def test_the_loss_is_on_the_response_only(prepared: Artifact) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(prepared.directory / "tokenizer"))
    row = rows_of(prepared.directory, "sft/train")[0]
    counted = [t for t, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    assert tokenizer.decode(counted) == row["response"] + "</s>"
    assert row["completion_mask"] == sorted(row["completion_mask"])


def test_our_template_renders_as_the_tokenizer_does(prepared: Artifact) -> None:
    from transformers import AutoTokenizer

    directory = prepared.directory / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    template = load_template(directory)
    assert template is not None and template.source == CHAT_TEMPLATE
    messages = [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "<b>"}]
    assert template.render(messages) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_pair_is_what_training_on_the_whole_conversation_would_see(prepared: Artifact) -> None:
    sft = {row["prompt"]: row for row in rows_of(prepared.directory, "sft/train")}
    shared = [
        row for row in rows_of(prepared.directory, "preferences/train") if row["prompt"] in sft
    ]
    assert shared
    for row in shared:
        assert row["prompt_ids"] + row["chosen_ids"] == sft[row["prompt"]]["input_ids"]


def test_a_prompt_is_never_on_both_sides(prepared: Artifact) -> None:
    sides = [
        {row["prompt"] for row in rows_of(prepared.directory, f"preferences/{name}")}
        for name in ("train", "held_out")
    ]
    assert sides[1] and not sides[0] & sides[1]


def test_equal_input_gives_equal_files(
    prepared: Artifact, tmp_path: Path, tiny_base: Path, tiny_rows: dict[str, Path]
) -> None:
    spec = prepare_spec(tmp_path, tiny_base, tiny_rows)
    run_stage(spec)
    again = hash_files(work_of(spec) / "output")
    assert {name: again[name] for name in again} == {
        name: entry for name, entry in prepared.files.items() if name != "events.jsonl"
    }


def prepare(home: Path, base: Path, sources: dict[str, Path], **data: Any) -> dict[str, Any]:
    spec = prepare_spec(home, base, sources, **data)
    run_stage(spec)
    return json.loads((work_of(spec) / "output" / "rows.json").read_text())


def test_bad_rows_are_dropped_by_reason_and_the_account_balances(
    tmp_path: Path, tiny_base: Path
) -> None:
    good = [{"prompt": question(n), "chosen": "yes", "rejected": "no"} for n in range(20)]
    bad = [
        {"prompt": "q", "chosen": "x", "rejected": "x"},
        {"prompt": "q " * 200, "chosen": "x", "rejected": "y"},
        {"prompt": question(900).upper(), "chosen": "x", "rejected": "y"},
    ]
    sources = {
        "preferences": write_lines(tmp_path / "pairs.jsonl", good + bad),
        "evaluation": write_lines(
            tmp_path / "evaluation.jsonl", [{"prompt": question(900), "target": "x"}]
        ),
    }
    account = prepare(tmp_path / "home", tiny_base, sources)["preferences"]
    assert account["dropped"] == {"equal_responses": 1, "too_long": 1, "evaluation_prompt": 1}
    assert account["read"] == 23 == account["trained"] + account["held_out"] + 3


def test_a_row_says_itself_where_it_belongs(tmp_path: Path, tiny_base: Path) -> None:
    rows = [
        {"prompt": question(n), "chosen": "a", "rejected": "b", "split": split}
        for n, split in enumerate(["train", "held_out", "train"])
    ]
    sources = {"preferences": write_lines(tmp_path / "pairs.jsonl", rows)}
    account = prepare(tmp_path / "home", tiny_base, sources)["preferences"]
    assert (account["trained"], account["held_out"]) == (2, 1)


def test_human_dialogues_with_implicit_prompts_are_read(tmp_path: Path, tiny_base: Path) -> None:
    turns = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: {}\n\nAssistant:"
    rows = [
        {"chosen": turns.format(n) + " sure", "rejected": turns.format(n) + " never"}
        for n in range(10)
    ]
    sources = {"preferences": write_lines(tmp_path / "hh.jsonl", rows)}
    spec = prepare_spec(tmp_path / "home", tiny_base, sources, held_out_share=0)
    run_stage(spec)
    row = rows_of(work_of(spec) / "output", "preferences/train")[0]
    assert row["prompt"].endswith("<|user|>0<|assistant|>")
    assert (row["chosen"], row["rejected"]) == ("sure", "never")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "q", "answer": "a"}], r"lacks the columns.*has \['answer', 'question'\]"),
        ([{"prompt": "q " * 300, "completion": "a"}] * 3, r"loses 3 of 3 rows.*tokens, at most 64"),
        ([{"prompt": question(900), "completion": "a"}], "nothing is left of 1 rows"),
    ],
)
def test_data_that_cannot_be_used_fail_with_what_and_where(
    tmp_path: Path, tiny_base: Path, rows: list[dict[str, str]], message: str
) -> None:
    sources = {
        "sft": write_lines(tmp_path / "rows.jsonl", rows),
        "evaluation": write_lines(
            tmp_path / "evaluation.jsonl", [{"prompt": question(900), "target": "x"}]
        ),
    }
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "home", tiny_base, sources)


def test_a_tokenizer_without_template_is_refused_for_conversations(
    tmp_path: Path, tiny_base: Path, tiny_rows: dict[str, Path]
) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="no chat template"):
        prepare(tmp_path / "home", bare, {"sft": tiny_rows["sft"]})
    assert prepare(tmp_path / "home", bare, {"general": tiny_rows["general"]})


def test_a_builtin_base_is_found_where_the_package_lies_now(tmp_path: Path) -> None:
    """A home outlives the environment that the package was installed in."""
    base = base_model_directory("freight-base")
    record = {"source": "builtin:freight-base", "digest": digest_directory(base)}
    (tmp_path / "base_model.json").write_text(json.dumps(record))
    location = {"path": str(tmp_path / "old" / "base"), "files": {"config.json": [1, 1]}}
    (tmp_path / "location.json").write_text(json.dumps(location))
    assert read_base(tmp_path).path == str(base)
    (tmp_path / "base_model.json").write_text(json.dumps({**record, "digest": "0" * 64}))
    with pytest.raises(ArtifactError, match="is not the one that the data were prepared for"):
        read_base(tmp_path)
