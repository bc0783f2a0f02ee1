"""Stage `questions`: questions are read, split by their prompts, and leaks are taken out.

    questions, demonstrations -> training, choice, verdict (and what is asked after an update)

A prompt's digest alone says which part it is in, so that no prompt is in two and a further question
moves no other. One that stands in a document or in synthetic text leaves the verdict.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from alignflow.data import (
    Asked,
    BadRow,
    RawRow,
    demonstration,
    last_user_turn,
    prompt_to_answer,
    read_source,
    recognised,
    same_question,
    transcript,
)
from alignflow.errors import DataError
from alignflow.files import digest_json, read_json_lines, write_json_lines
from alignflow.recipe import DataSource
from alignflow.retrieval import DOCUMENTS_FILE
from alignflow.stages import EventWriter, Record, RowAccount, StageParams, StageResult, StageSpec

PARTS = ("training", "choice", "verdict", "updates")
TEXTS_FILE = "texts.jsonl"
LARGEST_LEAK = 0.2
ASKED_TWICE, JUDGED = "asked_twice", "judged"

Message = dict[str, Any]


class Question(Record):
    """A question, and what is right."""

    name: str
    """Equal prompts have equal names."""
    messages: list[Message]
    targets: list[str]
    """Accepted answers; the first is what is trained on."""
    group: str = "all"
    answerable: bool = True
    """Whether it has an answer; where not, to abstain is right."""
    sources: list[str] = Field(default_factory=list)
    """Documents that hold the answer."""
    stale: list[str] = Field(default_factory=list)
    """What was right before the documents changed."""

    @property
    def text(self) -> str:
        """What the user asks."""
        return last_user_turn(self.messages)


class QuestionsParams(StageParams):
    """Of stage `questions`."""

    questions: list[DataSource]
    demonstrations: list[DataSource]
    updates: list[DataSource] = Field(default_factory=list)
    sources: dict[str, str]
    """Digest of each source's rows."""
    verdict_share: float
    abstention: str


class Parts(NamedTuple):
    """Questions by what they are for."""

    training: list[Question]
    choice: list[Question]
    verdict: list[Question]


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        DataError: A part is empty, or over a fifth of the verdict stands in the documents.
    """
    params = QuestionsParams.of(spec)
    questions, dropped = read_questions(_rows(spec, params.questions))
    parts = split(questions, params.verdict_share, demonstrated=bool(params.demonstrations))
    shown, untaught = _demonstrations(spec, params, [*parts.choice, *parts.verdict])
    leaked = leaks(parts.verdict, _texts(spec))
    verdict = without_leaks(parts.verdict, leaked)
    training = shown or [_taught(question, params.abstention) for question in parts.training]
    written = {"choice": parts.choice, "verdict": verdict}
    for name, part in (*written.items(), ("training", training)):
        if not part:
            raise DataError(
                f"decide.questions: {len(questions)} questions leave none for the {name} part. Give "
                "more questions, or another decide.verdict_share."
            )
    changed = read_questions(_rows(spec, params.updates))[0] if params.updates else []
    output = work / "output"
    write_json_lines(output / "training.jsonl", training)
    for name, part in (*written.items(), ("updates", changed)):
        write_json_lines(output / f"{name}.jsonl", [question.model_dump() for question in part])
    counts = {name: float(len(part)) for name, part in written.items()}
    metrics = {"training": float(len(training)), **counts, "leaked": float(len(leaked))}
    if leaked:
        events.message(f"{len(leaked)} questions stand in the documents and leave the verdict")
    return StageResult(
        metrics={**metrics, "updates": float(len(changed))},
        rows=RowAccount(
            read=len(questions) + sum(dropped.values()),
            trained=0 if shown else len(training),
            held_out=len(parts.choice) + len(verdict) + (len(parts.training) if shown else 0),
            dropped={**dropped, **({"leaked": len(leaked)} if leaked else {})},
        ),
        details={"leaked": leaked, "dropped": dict(dropped), "dropped_demonstrations": untaught},
    )


def _rows(spec: StageSpec, sources: Sequence[DataSource]) -> Iterator[RawRow]:
    for source in sources:
        yield from read_source(source, seed=spec.seed, path=spec.paths.get(source.source))


def read_questions(rows: Iterable[RawRow]) -> tuple[list[Question], Counter[str]]:
    """Questions, one for each prompt, and how many rows were dropped for which reason."""
    questions: dict[str, Question] = {}
    dropped: Counter[str] = Counter()
    for row in rows:
        try:
            question = question_of(row)
        except BadRow as bad:
            dropped[bad.reason] += 1
            continue
        dropped[ASKED_TWICE] += question.name in questions
        questions.setdefault(question.name, question)
    return list(questions.values()), +dropped


def question_of(row: RawRow) -> Question:
    """A row as a question.

    Raises:
        BadRow: It has no prompt, or no target although it is answerable.
    """
    if row.fields is None:
        raise BadRow(row.problem or "unreadable", row.message)
    fields = dict(row.fields)
    answerable = fields.get("answerable") is None or _truth(fields["answerable"])
    targets = _texts_in(fields.pop("target", None) or fields.pop("targets", None))
    if targets:
        fields["target"] = targets[0]
    asked = prompt_to_answer(fields, wants_target=answerable)
    targets = targets or ([asked.target] if asked.target else [])
    sources = fields.get("sources") or fields.get("source_documents")
    return Question(
        name=prompt_digest(asked.messages),
        messages=asked.messages,
        targets=targets if answerable else [],
        group=str(fields.get("group") or "all"),
        answerable=answerable,
        sources=_texts_in(sources),
        stale=_texts_in(fields.get("stale")),
    )


def _truth(value: Any) -> bool:
    return value.strip().lower() in ("true", "yes", "1") if isinstance(value, str) else bool(value)


def _texts_in(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    values = value if isinstance(value, list) else [value]
    return [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]


def prompt_digest(messages: Sequence[Message]) -> str:
    """Names a prompt: equal words, equal name."""
    return digest_json(same_question(transcript(list(messages))))[:16]


def split(questions: Sequence[Question], verdict_share: float, *, demonstrated: bool) -> Parts:
    """Questions by the digest of their prompt.

    The development part, all but the verdict, is for choosing; half of it is trained on where there
    are no demonstrations.
    """
    parts = Parts([], [], [])
    for question in questions:
        place = int(question.name, 16) / 16 ** len(question.name)
        if place < verdict_share:
            parts.verdict.append(question)
        elif demonstrated or place < (1.0 + verdict_share) / 2.0:
            parts.choice.append(question)
        else:
            parts.training.append(question)
    return parts


def leaks(questions: Sequence[Question], texts: Iterable[str]) -> list[str]:
    """Names of the questions that stand in one of the texts."""
    left = {question.name: question.text for question in questions}
    leaked: list[str] = []
    for text in texts:
        if not Asked.of(left.values()).within(text):
            continue
        found = [name for name, asked in left.items() if Asked.of([asked]).within(text)]
        leaked += found
        for name in found:
            del left[name]
    return sorted(leaked)


def without_leaks(verdict: Sequence[Question], leaked: Sequence[str]) -> list[Question]:
    """The questions that did not leak.

    Raises:
        DataError: Too many did.
    """
    if len(leaked) > LARGEST_LEAK * len(verdict):
        example = next(question.text for question in verdict if question.name in leaked)
        raise DataError(
            f"decide.questions: {len(leaked)} of {len(verdict)} questions of the verdict stand in the "
            f"documents or their paraphrases, such as {example!r:.80}; over "
            f"{LARGEST_LEAK:.0%} are no measurement. Ask in other words than the documents, or take "
            "the questions out of them."
        )
    return [question for question in verdict if question.name not in leaked]


def _texts(spec: StageSpec) -> Iterator[str]:
    """Documents and synthetic texts."""
    for role, name in (("index", DOCUMENTS_FILE), ("paraphrase", TEXTS_FILE)):
        if role in spec.inputs:
            yield from (row["text"] for row in read_json_lines(spec.input(role) / name))


def _demonstrations(
    spec: StageSpec, params: QuestionsParams, judged: Sequence[Question]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Conversations to train on, and those dropped: bad ones, and those that ask what is judged."""
    asked = Asked.of(question.text for question in judged)
    rows, dropped = [], Counter[str]()
    for row in _rows(spec, params.demonstrations):
        try:
            messages = _conversation(row)
        except BadRow as bad:
            dropped[bad.reason] += 1
            continue
        if asked.among(messages):
            dropped[JUDGED] += 1
            continue
        rows.append({"name": prompt_digest(messages[:-1]), "messages": messages})
    return rows, dict(dropped)


def _conversation(row: RawRow) -> list[Message]:
    if row.fields is None:
        raise BadRow(row.problem or "unreadable", row.message)
    [told, *_] = recognised(row.fields, "demonstration", row.form).rows
    messages = demonstration(told).messages
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("no_response", "has no answer to learn from")
    return messages


def _taught(question: Question, abstention: str) -> dict[str, Any]:
    answer = question.targets[0] if question.answerable else abstention
    turn = {"role": "assistant", "content": answer}
    return {"name": question.name, "messages": [*question.messages, turn]}
