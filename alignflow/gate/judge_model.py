"""Stage `judge`: a model says which of two responses is better.

    questions.jsonl -> the model's greedy replies -> output/judgements.jsonl

The file has the form of `judge.JudgementCache`, so that the gate reads it like any judge's answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from alignflow.data import fetch_base
from alignflow.gate.judge import (
    MODEL_FIELD,
    REPLY_TOKENS,
    JudgementCache,
    parse,
    question,
    read_questions,
)
from alignflow.models import BaseModel, decode, load_base, respond
from alignflow.stages import JUDGEMENTS_FILE, EventWriter, JudgeParams, StageResult, StageSpec

BATCH_SIZE = 16


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module."""
    questions, params = read_questions(spec), JudgeParams.of(spec)
    directory = fetch_base(params.model, spec.paths.get("model"), MODEL_FIELD)
    kind: Any = AutoTokenizer
    tokenizer = kind.from_pretrained(str(directory), trust_remote_code=False)
    base = BaseModel(path=str(directory), source=params.model.source, digest=params.model.digest)
    responses = respond(
        load_base(base, dtype=params.dtype, quantization=None),
        tokenizer,
        [token_ids(tokenizer, question(params.instruction, *asked)) for asked in questions],
        max_new_tokens=REPLY_TOKENS,
        batch_size=BATCH_SIZE,
        progress=lambda done: events.progress(done, len(questions), "questions"),
    )
    output = work / "output" / JUDGEMENTS_FILE
    output.unlink(missing_ok=True)
    cache = JudgementCache(output)
    answers = [parse(reply) for reply in decode(tokenizer, responses)]
    for asked, answer in zip(questions, answers, strict=True):
        cache.keep(params.name, asked, answer)
    ties = answers.count("tie") / len(answers)
    return StageResult(metrics={"questions": float(len(answers)), "tie_share": ties})


def token_ids(tokenizer: Any, content: str) -> list[int]:
    """A question as the model reads it: by its chat template, without one as plain text."""
    if tokenizer.chat_template is None:
        return tokenizer(content + "\n\nAnswer:")["input_ids"]
    turn = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=False
    )
