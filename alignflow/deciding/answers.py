"""What stage `ask` is told, and what it keeps of each question. No torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from alignflow.files import read_json_lines
from alignflow.recipe import EvaluationSection
from alignflow.retrieval import Passage
from alignflow.stages import ModelParams, Record

ANSWERS_FILE = "answers.jsonl"


class AskParams(ModelParams):
    """Of stage `ask`."""

    section: EvaluationSection
    judged_by: dict[str, str] = Field(default_factory=dict)
    abstention: str
    timed: bool
    """Whether latency is measured too."""
    general: bool
    """Whether general text is read too, against forgetting."""


class Answer(Record):
    """What an arm said to a question."""

    name: str
    group: str
    question: str
    targets: list[str]
    answerable: bool
    answer: str
    value: float
    """By the first metric, or whether it rightly abstained."""
    abstained: bool
    hit: bool | None
    passages: list[Passage]
    prompt_tokens: int
    response_tokens: int
    stale: bool
    """Whether it is what was right before an update."""


def read_answers(directory: Path) -> list[Answer]:
    """The answers of an artifact."""
    return [Answer.model_validate(row) for row in read_json_lines(directory / ANSWERS_FILE)]
