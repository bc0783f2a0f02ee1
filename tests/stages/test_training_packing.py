"""Documents share a row only where the architecture keeps them apart, as is proved on a toy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stage_runs import (
    build_tiny_base,
    logs_of,
    make_spec,
    prepare_spec,
    run_and_publish,
    run_stage,
    work_of,
    write_lines,
)
from toy_architectures import save_toy, toy
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from alignflow.data.stored import StoredRows
from alignflow.models.loading import load_tokenizer, quiet
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import read_events
from alignflow.training.engine.packing import PackedCollator, Packing, apart, packing_of

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]},
    {"input_ids": [10, 11], "seq_lengths": [2]},
]


def test_boundaries_are_given_as_trl_gives_them() -> None:
    ours = PackedCollator(0, Packing.LENGTHS)(ROWS)
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    expected = theirs([{**row, "labels": row["input_ids"]} for row in ROWS])
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), name


class ByLengths(torch.nn.Module):
    """A recurrence that begins anew where it is told that a document does, whatever positions say."""

    device = torch.device("cpu")

    def forward(
        self, input_ids: torch.Tensor, seq_idx: torch.Tensor | None = None, **rest: Any
    ) -> Any:
        number = torch.zeros_like(input_ids) if seq_idx is None else seq_idx
        same = number[:, :, None] == number[:, None, :]
        earlier = torch.ones(same.shape[1:]).tril() * same
        return SimpleNamespace(logits=earlier @ input_ids[..., None].float())


def test_each_way_is_taken_where_it_is_exact() -> None:
    assert packing_of(toy("qwen3")) is Packing.POSITIONS
    assert packing_of(ByLengths()) is Packing.LENGTHS
    assert packing_of(toy("mamba2")) is Packing.OFF


def test_the_toys_draw_no_number_of_the_stage() -> None:
    before = torch.random.get_rng_state()
    packing_of(toy("qwen3"))
    assert torch.equal(torch.random.get_rng_state(), before)


def prepared_for(name: str, folder: Path) -> Artifact:
    tokenizer = AutoTokenizer.from_pretrained(str(build_tiny_base(folder / "tokenizer")))
    base = save_toy(name, folder / "base", tokenizer)
    texts = [{"text": f"rule {n}: thing {n} is red{' and blue' * (n % 4)}."} for n in range(24)]
    sources = {"pretrain": write_lines(folder / "documents.jsonl", texts)}
    return run_and_publish(prepare_spec(folder / "home", base, sources))


def test_an_architecture_that_cannot_keep_them_apart_reads_each_alone(tmp_path: Path) -> None:
    prepared = prepared_for("qwen3_5_text", tmp_path)
    rows = StoredRows.of(prepared.directory / "pretrain" / "train")
    options: dict[str, Any] = {"mode": "full", "batch_size": len(rows), "learning_rate": 1e-9}
    spec = make_spec(prepared, tmp_path, "pretrain", max_steps=1, replay_share=0.0, **options)
    assert run_stage(spec).params["packing"] == "off"
    events = read_events(work_of(spec) / "events.jsonl")
    said = [event["text"] for event in events if event["kind"] == "message"]
    assert any("not packed: in a qwen3_5_text here" in text for text in said)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32").eval()
    losses, tokens = 0.0, 0
    with torch.no_grad(), quiet():
        for row in apart([row["input_ids"] for row in rows], 64):
            ids = torch.tensor([row["input_ids"]])
            losses += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    [loss] = [values["loss"] for values in logs_of(spec) if "loss" in values]
    assert loss == pytest.approx(losses / tokens, abs=1e-4)


def test_layers_that_lie_turned_are_trained_and_merged(tmp_path: Path) -> None:
    prepared = prepared_for("gpt2", tmp_path)
    spec = make_spec(prepared, tmp_path, "pretrain", learning_rate=1e-2, max_steps=4)
    result = run_and_publish(spec).result
    assert result.params["packing"] == "positions"
    assert result.params["lora_target_modules_resolved"] == "c_attn,c_fc,c_proj"
    assert load_tokenizer(prepared.directory).pad_token_id == 2
