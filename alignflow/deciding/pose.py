"""Stage `pose`: questions become prompts, with passages or demonstrations before them as an arm has it.

    questions, index -> prompts within one budget of tokens, and whether the answer was among them

Of the training part it makes the conversations that SFT with retrieval learns from.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from alignflow.data import Encoder, same_question, special_of, spoken
from alignflow.deciding.arms import SHOTS, Context
from alignflow.deciding.questions import Message, Question
from alignflow.errors import DataError
from alignflow.files import read_json_lines, write_json_lines
from alignflow.recipe import Configuration, ModelSource, RetrievalSection
from alignflow.retrieval import Chunk, Passage, read_chunks, retriever_of, with_passages
from alignflow.stages import EventWriter, Record, StageParams, StageResult, StageSpec

PROMPTS_FILE, ROWS_FILE = "prompts.jsonl", "rows.jsonl"
SHORTEST_FOUND = 3
"""Letters of a target that tells a passage by itself."""
_WORDS = re.compile(r"\w+")


class PoseParams(StageParams):
    """Of stage `pose`."""

    part: Literal["training", "choice", "verdict", "updates"]
    context: Context
    configuration: Configuration
    retrieval: RetrievalSection | None = None
    retrieved_by: str | None = None
    """Digest of the file of the user's own function."""
    abstention: str
    prompt_tokens: int
    """Longest prompt."""


class Posed(Record):
    """A question as an arm asks it."""

    question: Question
    messages: list[Message]
    prompt_ids: list[int]
    passages: list[Passage] = Field(default_factory=list)
    """Without their scores, which a change anywhere moves: what is read stays the same."""
    hit: bool | None = None
    """Whether a passage holds the answer; None where no passage of the index is known to."""


class Sources(NamedTuple):
    """Where answers stand."""

    chunks: list[Chunk]
    words: list[str]
    """Those of each chunk, joined by blanks."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Sources:
        """Of an index."""
        return cls(list(chunks), [_joined(chunk.shown) for chunk in chunks])

    def of_question(self, question: Question) -> list[Chunk]:
        """Passages that hold the answer.

        Of labelled documents those with a target in them, or all of them; without labels every
        passage with a target that is long enough to tell.
        """
        targets = [_joined(target) for target in question.targets]
        tells = [t for t in targets if len(t.strip()) >= SHORTEST_FOUND or question.sources]
        labelled = [chunk.document in question.sources for chunk in self.chunks]
        holding = [
            chunk
            for chunk, words, own in zip(self.chunks, self.words, labelled, strict=True)
            if (own or not question.sources) and any(target in words for target in tells)
        ]
        if holding or not question.sources:
            return holding
        return [chunk for chunk, own in zip(self.chunks, labelled, strict=True) if own]


def _joined(text: str) -> str:
    """Words between blanks, so that one text stands in another by whole words."""
    return f" {' '.join(_WORDS.findall(same_question(text)))} "


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        DataError: A question alone is longer than the budget.
    """
    params = PoseParams.of(spec)
    rows = read_json_lines(spec.input("questions") / f"{params.part}.jsonl")
    tokenizer = spec.input("data") / "tokenizer"
    said = spoken(tokenizer, ModelSource(source=str(tokenizer)))
    writer = _Writer(params, said.encoder("all"), special_of(said.tokenizer))
    find = _finder(spec, params)
    if params.part == "training":
        posed = [_lesson(row, writer, find) for row in rows]
        write_json_lines(work / "output" / ROWS_FILE, posed)
        return StageResult(metrics={"rows": float(len(posed))})
    shots = read_json_lines(spec.input("questions") / "training.jsonl")
    asked, seconds = list[Posed](), 0.0
    for number, row in enumerate(rows, 1):
        question = Question.model_validate(row)
        started = time.perf_counter()
        found = find(question)
        seconds += time.perf_counter() - started
        asked.append(_posed(question, writer, found, _shots(params, shots, question)))
        events.progress(number, len(rows), "questions")
    write_json_lines(work / "output" / PROMPTS_FILE, [each.model_dump() for each in asked])
    return StageResult(metrics=_figures(asked, seconds))


def _figures(asked: Sequence[Posed], seconds: float) -> dict[str, float | None]:
    if not asked:
        return {}
    hits = [posed.hit for posed in asked if posed.hit is not None]
    tokens = [len(posed.prompt_ids) for posed in asked]
    return {
        "prompt_tokens": sum(tokens) / len(tokens),
        "recall": sum(hits) / len(hits) if hits else None,
        "questions_with_known_source": float(len(hits)),
        "search_seconds": seconds / len(asked),
    }


class _Found(NamedTuple):
    """What stands before a question."""

    passages: list[Passage]
    holding: list[Chunk]


_Finder = Callable[[Question], _Found]


def _finder(spec: StageSpec, params: PoseParams) -> _Finder:
    if params.context not in ("retrieved", "oracle"):
        return lambda _: _Found([], [])
    assert params.retrieval is not None
    index = spec.input("index")
    section, sources = params.retrieval, Sources.of(read_chunks(index))
    search = retriever_of(index, section)
    count = params.configuration.passages or section.passages

    def retrieved(question: Question) -> _Found:
        return _Found(search(question.text, count), sources.of_question(question))

    def oracle(question: Question) -> _Found:
        holding = sources.of_question(question)
        ranked = {passage.id: -n for n, passage in enumerate(search(question.text, 10 * count))}
        best = sorted(holding, key=lambda chunk: -ranked.get(chunk.id, -math.inf))[:1]
        shown = [Passage(id=chunk.id, document=chunk.document, text=chunk.shown) for chunk in best]
        return _Found(shown, holding)

    return retrieved if params.context == "retrieved" else oracle


def _shots(
    params: PoseParams, shots: Sequence[dict[str, Any]], question: Question
) -> list[list[Message]]:
    """Demonstrations before a question, the last of them the nearest."""
    if params.context != "few-shot":
        return []
    count = params.configuration.shots or SHOTS
    rows = list(shots)
    if params.configuration.nearest:
        asked = set(_WORDS.findall(question.text.lower()))

        def shared(row: dict[str, Any]) -> float:
            words = set(_WORDS.findall(row["messages"][0]["content"].lower()))
            return len(words & asked) / math.sqrt(max(len(words), 1))

        rows = sorted(rows, key=shared, reverse=True)
    return [row["messages"] for row in rows[:count]][::-1]


class _Writer(NamedTuple):
    """Writes prompts within the budget."""

    params: PoseParams
    encoder: Encoder
    special: list[str]

    def fitted(
        self, question: list[Message], passages: list[Passage], shots: list[list[Message]]
    ) -> tuple[list[Message], list[int], list[Passage]]:
        """Messages, their ids and the passages that fit: the last found are left out first.

        Raises:
            DataError: The question alone does not fit.
        """
        while True:
            messages = self.messages(question, passages, shots)
            ids = self.encoder.prompt(messages).prompt_ids
            if len(ids) <= self.params.prompt_tokens:
                return messages, ids, passages
            if not passages and not shots:
                raise DataError(
                    f"a question has {len(ids)} tokens and prompts have at most "
                    f"{self.params.prompt_tokens} (decide.prompt_tokens, or the model's context): "
                    f"{question[-1]['content']!r:.80}. Shorten it, or raise the limit."
                )
            passages, shots = passages[:-1], shots[1:]

    def messages(
        self, question: list[Message], passages: list[Passage], shots: list[list[Message]]
    ) -> list[Message]:
        """The prompt: demonstrations as turns, then instruction, passages and question in one."""
        *before, asked = question
        reading = self.params.retrieval.instruction if self.params.retrieval else ""
        texts = [passage.text for passage in passages]
        content = with_passages(asked["content"], texts, reading, self.special)
        if self.params.configuration.instruction:
            content = f"{self.params.configuration.instruction}\n{content}"
        turns = [turn for shot in shots for turn in shot]
        return [*turns, *before, {**asked, "content": content}]


def _posed(question: Question, writer: _Writer, found: _Found, shots: list[list[Message]]) -> Posed:
    messages, ids, passages = writer.fitted(question.messages, found.passages, shots)
    holding = {chunk.id for chunk in found.holding}
    hit = any(passage.id in holding for passage in passages) if holding else None
    if writer.params.context not in ("retrieved", "oracle"):
        hit = None
    return Posed(
        question=question,
        messages=messages,
        prompt_ids=ids,
        passages=[passage.model_copy(update={"score": None}) for passage in passages],
        hit=hit,
    )


def _lesson(row: dict[str, Any], writer: _Writer, find: _Finder) -> dict[str, Any]:
    """A conversation to learn from, with passages before its question as they will be found."""
    *prompt, answer = row["messages"]
    question = Question(name=row["name"], messages=prompt, targets=[answer["content"]])
    passages = find(question).passages
    messages, _, _ = writer.fitted(prompt, passages, [])
    return {"prompt": messages, "completion": [answer]}


def read_posed(directory: Path) -> list[Posed]:
    """The prompts of an artifact."""
    return [Posed.model_validate(row) for row in read_json_lines(directory / PROMPTS_FILE)]
