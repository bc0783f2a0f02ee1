"""A reward model reads its score at the last real token, in training, scoring and PPO alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from stage_runs import (
    build_tiny_base,
    make_spec,
    prepare_spec,
    question,
    run_and_publish,
    work_of,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignflow.models.loading import load_reward_model, load_tokenizer, quiet, read_base
from alignflow.models.scoring import reward_scores
from alignflow.recipe import TuningSection
from alignflow.stages.artifacts import Artifact
from alignflow.stages.events import EventWriter
from alignflow.training.engine.fit import _trainer
from alignflow.training.engine.job import read_job
from alignflow.training.methods.reward import Reward
from alignflow.training.rl.roles import Sequences
from alignflow.training.rl.separate_models import SeparateModels
from alignflow.training.rl.shared_base import SharedBase

EOS = 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_rows: dict[str, Path]) -> Artifact:
    """Of a model whose padding token is the one that ends a response, as Llama 3's is."""
    folder = tmp_path_factory.mktemp("padded-with-eos")
    base = build_tiny_base(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(str(base))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    return run_and_publish(prepare_spec(folder / "home", base, tiny_rows))


@pytest.fixture(scope="module", params=["lora", "full"])
def judge(request: Any, prepared: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    home = tmp_path_factory.mktemp("judge")
    options = {"mode": request.param, "learning_rate": 1e-2, "max_steps": 8}
    return run_and_publish(make_spec(prepared, home, "reward", **options))


@pytest.fixture(scope="module")
def rows(prepared: Artifact) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of several lengths, each ended."""
    tokenizer = load_tokenizer(prepared.directory)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    answers = ["it is red.", "no idea", "no idea idea idea", "it"]
    return [
        (tokenizer(question(n)).input_ids, [*tokenizer(text).input_ids, EOS])
        for n, text in enumerate(answers)
    ]


def alone(prepared: Artifact, judge: Artifact, rows: Any) -> list[float]:
    """By Transformers' and PEFT's own classes, each row in a batch of its own."""
    base, kind = read_base(prepared.directory), AutoModelForSequenceClassification
    options: Any = {"num_labels": 1, "dtype": torch.float32}
    if (judge.directory / "model").is_dir():
        model: Any = kind.from_pretrained(str(judge.directory / "model"), **options)
    else:
        plain = kind.from_pretrained(base.path, **options)
        with quiet():
            model = PeftModel.from_pretrained(plain, str(judge.directory / "adapter"))
    model.config.pad_token_id = None
    with torch.no_grad():
        return [float(model.eval()(input_ids=torch.tensor([p + r])).logits) for p, r in rows]


def test_scoring_and_ppo_read_the_token_that_ends_the_response(
    prepared: Artifact, judge: Artifact, rows: Any
) -> None:
    base = read_base(prepared.directory)
    loaded = load_reward_model(base, judge.directory, dtype="float32", quantization=None)
    scored = reward_scores(loaded, [p + r for p, r in rows], pad=EOS, batch_size=4)
    if (judge.directory / "model").is_dir():
        roles: Any = SeparateModels(base, None, judge.directory, dtype="float32")
    else:
        tuning = TuningSection.model_validate({"rank": 4})
        roles = SharedBase(base, None, judge.directory, tuning, dtype="float32")
    prompts, responses = zip(*rows, strict=True)
    sequences = Sequences.of(prompts, responses, pad=EOS, device=torch.device("cpu"))
    expected = alone(prepared, judge, rows)
    assert max(expected) - min(expected) > 0.1
    assert scored == pytest.approx(expected, abs=1e-5)
    assert roles.scores(sequences).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_training_reads_the_same_token(
    prepared: Artifact, rows: Any, mode: str, tmp_path: Path
) -> None:
    spec = make_spec(prepared, tmp_path, "reward", mode=mode)
    events = EventWriter(tmp_path / "events.jsonl", 1)
    trainer = _trainer(Reward(read_job(spec, work_of(spec), events, Reward.section)))
    texts = [p + r for p, r in rows]
    pairs = [
        {"chosen_ids": a, "rejected_ids": b} for a, b in zip(texts[::2], texts[1::2], strict=True)
    ]
    model = trainer.model.eval()
    with torch.no_grad():
        trained = model(**trainer.data_collator(pairs)).logits[:, 0].tolist()
    scored = reward_scores(model, texts[::2] + texts[1::2], pad=EOS, batch_size=1)
    assert trained == pytest.approx(scored, abs=1e-5)


def test_the_head_is_what_was_trained_also_where_the_model_is_in_bfloat16(
    prepared: Artifact, judge: Artifact
) -> None:
    base = read_base(prepared.directory)
    heads = [
        load_reward_model(base, judge.directory, dtype=dtype, quantization=None).score
        for dtype in ("float32", "bfloat16")
    ]
    weights = [head.weight.detach() for head in heads]
    assert weights[1].dtype == torch.float32
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[0].bfloat16().float())
