"""Continued pre-training: packing, replay, and that later stages take its result as their base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import (
    COLOURS,
    make_spec,
    prepare_spec,
    run_and_publish,
    run_stage,
    work_of,
    write_lines,
)

from alignflow.data.stored import StoredRows
from alignflow.files import digest_directory
from alignflow.models.loading import base_of, load_base, load_tokenizer, read_base
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import read_events
from alignflow.training.engine.packing import PackedCollator, packed, with_replay


def document(number: int) -> str:
    return f"rule {number}: thing {number} is {COLOURS[number % 8]}."


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_rows: dict[str, Path]
) -> Artifact:
    """Documents, general text to replay, demonstrations, and general text to measure on."""
    folder = tmp_path_factory.mktemp("documents")
    sources = {
        "pretrain": write_lines(
            folder / "documents.jsonl", [{"text": document(n)} for n in range(80)]
        ),
        "replay": write_lines(
            folder / "replay.jsonl",
            [{"text": f"grass {n} is green. "} for n in range(60)]
            + [{"text": "grass is green. " * 3}],
        ),
        "sft": tiny_rows["sft"],
        "general": tiny_rows["general"],
    }
    return run_and_publish(prepare_spec(folder / "home", tiny_base, sources))


def test_measured_text_is_not_trained_on_and_documents_are_held_out(prepared: Artifact) -> None:
    rows = json.loads((prepared.directory / "rows.json").read_text())
    assert rows["replay"] == {
        "read": 61,
        "trained": 60,
        "truncated": 0,
        "held_out": 0,
        "dropped": {"general_text": 1},
    }
    assert 0 < rows["pretrain"]["held_out"] < 20


def test_packing_loses_no_token_and_fills_the_rows() -> None:
    documents = [[n] * length for n, length in enumerate([3, 5, 2, 9, 4, 1], 10)]
    rows = packed(documents, 8)
    assert all(len(row["input_ids"]) == sum(row["seq_lengths"]) <= 8 for row in rows)
    assert sorted(token for row in rows for token in row["input_ids"]) == sorted(
        token for ids in documents for token in ids
    )
    assert len(rows) == 3


def test_replay_is_drawn_until_it_has_its_share_of_the_tokens() -> None:
    documents, replay = [[1] * 10] * 30, [[2] * 5] * 100
    texts = with_replay(documents, replay, 0.25, seed=0)
    assert sum(ids.count(2) for ids in texts) == 100  # of 400
    assert with_replay(documents, replay, 0.0, seed=0) == documents
    assert len(with_replay(documents, replay[:3], 0.9, seed=0)) == 33


def test_no_document_sees_another_in_its_row(prepared: Artifact) -> None:
    tokenizer = load_tokenizer(prepared.directory)
    model = load_base(read_base(prepared.directory), dtype="float32", quantization=None).eval()
    documents = [tokenizer(document(n)).input_ids for n in range(5)]
    rows = packed(documents, max(map(len, documents)) * 2 + 3)
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    batch = PackedCollator(tokenizer.pad_token_id)(rows)
    with torch.no_grad():
        together = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        for place, row in enumerate(rows):
            start = 0
            for length in row["seq_lengths"]:
                ids = row["input_ids"][start : start + length]
                alone = model(torch.tensor([ids])).logits[0]
                assert (together[place, start : start + length] - alone).abs().max() < 1e-5
                assert batch["labels"][place, start : start + length].tolist() == [-100, *ids[1:]]
                start += length


@pytest.mark.parametrize("mode", ["lora", "qlora", "full"])
def test_it_ends_in_a_plain_model_that_knows_the_documents_better(
    prepared: Artifact, tmp_path: Path, mode: str
) -> None:
    spec = make_spec(
        prepared, tmp_path, "pretrain", mode=mode, learning_rate=2e-2, max_steps=8, replay_share=0.2
    )
    artifact = run_and_publish(spec)
    result = artifact.result
    assert {path.name for path in artifact.directory.iterdir()} >= {"model", "base_model.json"}
    assert result.rows is not None and result.rows.balanced
    assert result.rows.dropped["not_drawn"] > 0
    assert result.params["replay_token_share"] == pytest.approx(0.2, abs=0.02)
    assert result.metrics["perplexity_domain"] < 0.85 * result.metrics["perplexity_domain_before"]  # type: ignore[operator]
    assert result.metrics["perplexity_general_before"] is not None
    record = json.loads((artifact.directory / "base_model.json").read_text())
    assert record["digest"] == digest_directory(artifact.directory / "model")
    after = make_spec(prepared, tmp_path, "sft", pretrain=artifact)
    assert _perplexity(artifact, after) == pytest.approx(result.metrics["perplexity_domain"], 0.02)


def _perplexity(artifact: Artifact, spec: Any) -> float:
    """Of held-out documents, under the base model that a later stage takes."""

    from alignflow.models.scoring import text_losses

    path = Path(spec.inputs["data"].path) / "pretrain" / "held_out"
    rows = [row["input_ids"] for row in StoredRows.of(path)]
    base = base_of(spec)
    assert Path(base.path).is_relative_to(artifact.directory)
    model = load_base(base, dtype="float32", quantization=None)
    return math.exp(sum(text_losses(model, rows, batch_size=8)) / sum(len(row) - 1 for row in rows))


def test_later_stages_tune_align_and_merge_on_it(prepared: Artifact, tmp_path: Path) -> None:
    from alignflow.stages.spec import StageSpec

    pretrained = run_and_publish(
        make_spec(prepared, tmp_path, "pretrain", learning_rate=2e-2, replay_share=0.0)
    )
    sft = run_and_publish(make_spec(prepared, tmp_path, "sft", pretrain=pretrained))
    plain = make_spec(prepared, tmp_path, "sft")
    assert sft.spec.key != plain.key
    named = json.loads((sft.directory / "adapter" / "base_model.json").read_text())
    record = json.loads((pretrained.directory / "base_model.json").read_text())
    assert named["digest"] == record["digest"] and named["source"].endswith("+pretrain")
    merge = StageSpec(
        stage="merge",
        home=str(tmp_path),
        seed=0,
        params={
            **sft.spec.params,
            "section": {},
            "evaluation": {"bootstrap_resamples": 200, "metrics": []},
        },
        inputs={"data": prepared.ref(), "pretrain": pretrained.ref(), "aligned": sft.ref()},
    )
    from alignflow.evaluation.suite import load_bench
    from alignflow.merging.stage import run
    from alignflow.recipe import EvaluationSection
    from alignflow.stages.events import EventWriter
    from alignflow.stages.params import MergeParams

    bench = load_bench(merge, MergeParams.of(merge), EvaluationSection(metrics=[]))
    assert bench.model("base") == read_base(prepared.directory).digest != record["digest"]

    work = work_of(merge)
    (work / "output").mkdir(parents=True)
    result = run(merge, work, EventWriter(work / "events.jsonl", 1))
    assert result.details["certificate"]["status"] == "passed"


def test_the_first_loss_is_the_mean_over_all_but_first_tokens(
    prepared: Artifact, tmp_path: Path
) -> None:
    spec = make_spec(
        prepared,
        tmp_path,
        "pretrain",
        mode="full",
        replay_share=0.0,
        batch_size=64,
        max_steps=1,
        compute={"micro_batch_size": 16},
    )
    run_stage(spec)
    events = read_events(work_of(spec) / "events.jsonl")
    loss = next(event["values"]["loss"] for event in events if "loss" in event.get("values", {}))

    from alignflow.models.scoring import text_losses

    path = prepared.directory / "pretrain" / "train"
    rows = [row["input_ids"] for row in StoredRows.of(path)]
    model = load_base(read_base(prepared.directory), dtype="float32", quantization=None)
    expected = sum(text_losses(model, rows, batch_size=8)) / sum(len(row) - 1 for row in rows)
    assert loss == pytest.approx(expected, abs=1e-4)
