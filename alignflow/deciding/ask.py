"""Stage `ask`: one arm answers the prompts of one part; answers, values and seconds are kept.

prompts, a model -> answers, each against every accepted one, and how long one takes alone
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.deciding.answers import ANSWERS_FILE, Answer, AskParams
from alignflow.deciding.pose import Posed, read_posed
from alignflow.deciding.scoring import abstains, scores_of
from alignflow.evaluation import Job, Prompt, declared, load_general, load_metrics, measure
from alignflow.files import write_json_lines
from alignflow.models import base_of, load_policy, load_tokenizer, respond
from alignflow.recipe import EvaluationSection
from alignflow.stages import EventWriter, RowAccount, StageResult, StageSpec

TIMED = 24
"""Questions that are also answered one at a time."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        EvaluationError: A figure cannot be computed.
    """
    params, posed = AskParams.of(spec), read_posed(spec.input("prompts"))
    tokenizer = load_tokenizer(spec.input("data"))
    adapter = spec.input("sft") if "sft" in spec.inputs else None
    model = load_policy(
        base_of(spec), adapter, dtype=params.dtype, quantization=params.quantization
    )
    general = load_general(spec.input("data")) if params.general else []
    section = params.section.model_copy(update={"sampled": False})
    job = Job([_prompt(each) for each in posed], general, section, [], spec.seed)
    started = time.perf_counter()
    measured = measure(
        model, tokenizer, job, lambda done: events.progress(done, len(posed), "answers")
    )
    seconds = time.perf_counter() - started
    texts = [response.text for response in measured.greedy]
    answers, figures = _judged(params, posed, texts, [len(r.ids) for r in measured.greedy])
    write_json_lines(work / "output" / ANSWERS_FILE, [answer.model_dump() for answer in answers])
    loss = measured.metrics.get("perplexity_general")
    timing = _timing(model, tokenizer, posed, section) if params.timed else {}
    return StageResult(
        metrics={
            **figures,
            **timing,
            "seconds_each": seconds / max(len(posed), 1),
            **({"general_loss": float(np.log(loss))} if loss is not None else {}),
        },
        rows=RowAccount(read=len(posed), held_out=len(posed)),
    )


def _prompt(posed: Posed) -> Prompt:
    target = (posed.question.targets or [""])[0]
    return Prompt(posed.prompt_ids, posed.question.text, target, "all", posed.question.text)


def _judged(
    params: AskParams, posed: Sequence[Posed], texts: Sequence[str], lengths: Sequence[int]
) -> tuple[list[Answer], dict[str, float | None]]:
    """The answers, and means of every metric and of what they cost."""
    questions = [each.question for each in posed]
    metrics = load_metrics(params.section)
    values = {m.name: scores_of(m, texts, questions, params.abstention) for m in metrics}
    first = values[metrics[0].name]
    old = [
        q.model_copy(update={"targets": q.stale, "answerable": bool(q.stale)}) for q in questions
    ]
    is_old = (
        scores_of(metrics[0], texts, old, params.abstention)
        if any(q.stale for q in questions)
        else []
    )
    answers = [
        Answer(
            name=each.question.name,
            group=each.question.group,
            question=each.question.text,
            targets=each.question.targets,
            answerable=each.question.answerable,
            answer=texts[place],
            value=first[place],
            abstained=abstains(texts[place], params.abstention),
            hit=each.hit,
            passages=each.passages,
            prompt_tokens=len(each.prompt_ids),
            response_tokens=lengths[place],
            stale=bool(is_old and each.question.stale and is_old[place] == 1.0),
        )
        for place, each in enumerate(posed)
    ]
    forms = [name for name in values if (about := declared().get(name)) and about.judges_form]
    figures: dict[str, float | None] = {
        "accuracy": _mean(first),
        "accuracy_given_hit": _mean([a.value for a in answers if a.hit]),
        "abstention": _mean([float(a.abstained) for a in answers if not a.answerable]),
        "false_abstention": _mean([float(a.abstained) for a in answers if a.answerable]),
        "format_validity": _mean(values[forms[0]]) if forms else None,
        "stale": _mean([float(a.stale) for a in answers]) if is_old else None,
        "prompt_tokens": _mean([float(a.prompt_tokens) for a in answers]),
        "response_tokens": _mean([float(a.response_tokens) for a in answers]),
        "recall": _mean([float(a.hit) for a in answers if a.hit is not None]),
    }
    return answers, figures | {name: _mean(each) for name, each in values.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _timing(
    model: Any, tokenizer: Any, posed: Sequence[Posed], section: EvaluationSection
) -> dict[str, float | None]:
    """Seconds of an answer to one question at a time: median and 95th percentile."""
    step = max(1, len(posed) // TIMED)
    seconds = []
    for each in posed[::step][:TIMED]:
        started = time.perf_counter()
        respond(
            model,
            tokenizer,
            [each.prompt_ids],
            max_new_tokens=section.max_new_tokens,
            batch_size=1,
        )
        seconds.append(time.perf_counter() - started)
    if not seconds:
        return {}
    low, high = np.quantile(seconds, (0.5, 0.95))
    return {"latency_p50_seconds": float(low), "latency_p95_seconds": float(high)}
