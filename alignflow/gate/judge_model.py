"""Stage `judge`: a model says which of two responses is better.

    questions.jsonl -> the model's greedy replies -> output/judgements.jsonl

The file has the form of `judge.JudgementCache`, so that the gate reads it like any judge's answers.
"""

from __future__ import annotations

from pathlib import Path

from alignflow.data import Spoken, fetch_base, spoken
from alignflow.gate.judge import (
    MODEL_FIELD,
    REPLY_TOKENS,
    JudgementCache,
    parse,
    question,
    read_questions,
)
from alignflow.models import BaseModel, answers, load_base, respond
from alignflow.recipe import ModelSource
from alignflow.stages import JUDGEMENTS_FILE, EventWriter, JudgeParams, StageResult, StageSpec

BATCH_SIZE = 16


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module."""
    questions, params = read_questions(spec), JudgeParams.of(spec)
    directory = fetch_base(params.model, spec.paths.get("model"), Path(spec.home), MODEL_FIELD)
    model = ModelSource(source=str(directory), template_arguments={"enable_thinking": False})
    said = spoken(directory, model, MODEL_FIELD)
    base = BaseModel(path=str(directory), source=params.model.source, digest=params.model.digest)
    responses = respond(
        load_base(base, dtype=params.dtype, quantization=None),
        said.tokenizer,
        [token_ids(said, question(params.instruction, *asked)) for asked in questions],
        max_new_tokens=REPLY_TOKENS,
        batch_size=BATCH_SIZE,
        progress=lambda done: events.progress(done, len(questions), "questions"),
    )
    output = work / "output" / JUDGEMENTS_FILE
    output.unlink(missing_ok=True)
    cache = JudgementCache(output)
    verdicts = [parse(reply) for reply in answers(said.tokenizer, [r.ids for r in responses])]
    for asked, verdict in zip(questions, verdicts, strict=True):
        cache.keep(params.name, asked, verdict)
    ties = verdicts.count("tie") / len(verdicts)
    return StageResult(metrics={"questions": float(len(verdicts)), "tie_share": ties})


def token_ids(said: Spoken, content: str) -> list[int]:
    """A question as the model reads it: by its chat template, without one as plain text."""
    if said.template is None:
        return said.tokenizer(content + "\n\nAnswer:")["input_ids"]
    turn = {"role": "user", "content": content}
    text = said.template.render([turn], add_generation_prompt=True)
    return said.tokenizer.encode(text, add_special_tokens=False)
