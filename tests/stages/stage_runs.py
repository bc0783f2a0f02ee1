"""What tests of stages share: a tiny base model, and running a stage in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alignflow.files import digest_directory
from alignflow.recipe import TRAINING_STAGES, TuningSection
from alignflow.stages.artifacts import Artifact, publish
from alignflow.stages.events import EventWriter, read_events
from alignflow.stages.process import load_stage
from alignflow.stages.spec import StageResult, StageSpec

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COLOURS = ["red", "green", "blue", "black", "white", "grey", "pink", "gold"]


STOCK_TRAINER: dict[str, Any] = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 0,
    "dataloader_pin_memory": False,
}
"""Arguments of TRL's own trainers where ours are held against them."""


def cases(names: Iterable[str], *at_once: str) -> list[Any]:
    """Cases of a parametrized test: those named run each time, the others are proofs."""
    return [
        name if name in at_once else pytest.param(name, marks=pytest.mark.proof) for name in names
    ]


def build_tiny_base(directory: Path) -> Path:
    """A random Qwen3 of 30 thousand parameters with a byte-level tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        [f"what colour is thing {n}? it is {c}." for n in range(20) for c in COLOURS],
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(directory))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    Qwen3ForCausalLM(config).save_pretrained(str(directory))
    return directory


def question(number: int) -> str:
    return f"what colour is thing {number}?"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare_spec(home: Path, base: Path, sources: dict[str, Path], **data: Any) -> StageSpec:
    model = {
        "source": str(base),
        "revision": None,
        "chat_template": None,
        "digest": digest_directory(base),
    }
    return StageSpec(
        stage="prepare",
        home=str(home),
        seed=0,
        params={
            "data": {**{part: [str(path)] for part, path in sources.items()}, **data},
            "base_model": model,
            "limits": {"sft": 64, "preferences": 64, "ratings": None, "prompts": None},
            "sources": {},
            "max_examples": None,
        },
        paths={"base_model": str(base)},
    )


def work_of(spec: StageSpec) -> Path:
    return Path(spec.home) / "work" / spec.stage / spec.key


def logs_of(spec: StageSpec) -> list[dict[str, float]]:
    """What a stage logged, step by step."""
    events = read_events(work_of(spec) / "events.jsonl")
    return [event["values"] for event in events if event["kind"] == "metrics"]


def logged(spec: StageSpec, name: str) -> list[float]:
    """One figure of it."""
    return [values[name] for values in logs_of(spec)]


def run_stage(spec: StageSpec, attempt: int = 1) -> StageResult:
    """Runs a stage in this process."""
    stage = load_stage(spec.stage)
    work = work_of(spec)
    (work / "output").mkdir(parents=True, exist_ok=True)
    events = EventWriter(work / "events.jsonl", attempt)
    try:
        return stage(spec, work, events)
    finally:
        events.close()


def run_and_publish(spec: StageSpec) -> Artifact:
    return publish(spec, run_stage(spec), 0.0, 1)


def make_spec(
    prepared: Artifact,
    home: Path,
    stage: str,
    *,
    mode: str = "lora",
    sft: Artifact | None = None,
    pretrain: Artifact | None = None,
    tuning: dict[str, Any] | None = None,
    compute: dict[str, Any] | None = None,
    teacher: Path | None = None,
    **section: Any,
) -> StageSpec:
    models: dict[str, Any] = {}
    if teacher is not None:
        section["teacher"] = str(teacher)
        record = {"source": str(teacher), "digest": digest_directory(teacher)}
        models = {"models": {"teacher": record}}
    settings = {"learning_rate": 1e-3, "max_steps": 3, "batch_size": 8, "max_length": 64}
    settings |= {"logging_steps": 1, **section}
    chosen = TuningSection.model_validate({"mode": mode, "rank": 4, **(tuning or {})})
    return StageSpec(
        stage=stage,
        home=str(home),
        seed=0,
        params={
            "section": TRAINING_STAGES[stage].section(**settings).model_dump(mode="json"),
            "tuning": chosen.model_dump(mode="json"),
            "dtype": "float32",
            **models,
        },
        paths={"teacher": str(teacher)} if teacher else {},
        inputs={
            "data": prepared.ref(),
            **({"sft": sft.ref()} if sft else {}),
            **({"pretrain": pretrain.ref()} if pretrain else {}),
        },
        compute=compute or {},
    )


def stopped_and_resumed(spec: StageSpec, step: int, monkeypatch: Any) -> StageResult:
    """A stage that SIGTERM stops after `step` updates, and that a second attempt finishes."""
    import os
    import signal

    from alignflow.errors import Preempted
    from alignflow.training.engine.callbacks import Report

    original = Report.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        original(self, args, state, control, **options)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Report, "on_step_end", on_step_end)
        try:
            run_stage(spec)
        except Preempted as stop:
            assert f"step {step} of" in stop.message
        else:
            raise AssertionError("the stage did not stop")
    result = run_stage(spec, attempt=2)
    assert f"Continues from step {step}." in (work_of(spec) / "events.jsonl").read_text()
    return result
