"""A judge of two responses: the recipe's function, a model, or an OpenAI-compatible endpoint.

Every pair is shown in both orders, so that a judge that favours a position finds ties. Answers are
kept in a file by (judge, prompt, first, second), so that a retry asks for nothing again. A model
answers in a stage of its own, `judge_model`. No torch here.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from alignflow.errors import EvaluationError, RecipeError
from alignflow.files import atomic_write_text, digest_json
from alignflow.models import chat_reply
from alignflow.recipe import JudgeSection, Recipe, require_retrain, resolve_base_model
from alignflow.stages import JudgeParams, NamedModel, StageSpec, resolve_dtype

Choice = Literal["first", "second", "tie"]
Judge = Callable[[str, str, str], str]
Question = tuple[str, str, str]
"""Prompt, first and second response."""
CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie", "c": "tie"}
WINS = {"first": 1.0, "second": 0.0, "tie": 0.5}
MODEL_FIELD = "retrain.judge.model"
REPLY_TOKENS = 8
TEMPLATE = """{instruction}

[Prompt]
{prompt}

[Response A]
{first}

[Response B]
{second}

Answer with one word: A, B or tie."""


class JudgementCache:
    """Answers given before, one JSON object a line; a torn line is passed over. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._answers: dict[str, str] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._answers[entry["key"]] = entry["answer"]

    def __len__(self) -> int:
        return len(self._answers)

    def ask(self, name: str, judge: Judge, prompt: str, first: str, second: str) -> str:
        """The judge's answer, asked for once."""
        key = digest_json([name, prompt, first, second])
        if key not in self._answers:
            answer = judge(prompt, first, second)
            if answer not in WINS:
                raise EvaluationError(
                    f"judge {name} answered {answer!r}; it must be one of {list(WINS)}"
                )
            self.keep(name, (prompt, first, second), answer)
        return self._answers[key]

    def keep(self, name: str, asked: Question, answer: str) -> None:
        """Adds an answer to (prompt, first, second)."""
        key = digest_json([name, *asked])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing, self._path.open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            start = b"" if file.read() in (b"", b"\n") else b"\n"
            file.write(start + json.dumps({"key": key, "answer": answer}).encode() + b"\n")
            self._answers[key] = answer


class PairJudge(NamedTuple):
    """A judge that is shown each pair of responses in both orders, and asked for nothing twice."""

    name: str
    """Identity, for the cache and the verdict."""
    judge: Judge
    cache: JudgementCache
    at_once: int = 1
    """Pairs that it is asked about at the same time."""

    def compare(self, responses: Mapping[str, tuple[str, str]]) -> dict[str, float]:
        """Prompt to 1 where the first of its two responses is better, 0 where the second is, 0.5."""
        pairs = [(prompt, ours, theirs) for prompt, (ours, theirs) in responses.items()]
        return dict(zip(responses, self._wins(pairs), strict=True))

    def agreement(self, pairs: Sequence[Question]) -> float | None:
        """Share of human preferences (prompt, chosen, rejected) that it shares; ties are half."""
        return sum(self._wins(pairs)) / len(pairs) if pairs else None

    def _wins(self, pairs: Iterable[Question]) -> list[float]:
        down = threading.Event()

        def win(pair: Question) -> float:
            if down.is_set():  # not asked about the rest; an earlier pair's error is what is raised
                raise CancelledError
            try:
                return self._win(pair)
            except Exception:
                down.set()
                raise

        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(win, pairs))

    def _win(self, pair: Question) -> float:
        prompt, ours, theirs = pair
        if ours == theirs:
            return 0.5
        forward = WINS[self.cache.ask(self.name, self.judge, prompt, ours, theirs)]
        backward = 1.0 - WINS[self.cache.ask(self.name, self.judge, prompt, theirs, ours)]
        return forward if forward == backward else 0.5


def judge_name(section: JudgeSection) -> str:
    """Identity of a judge: another instruction or model is another judge."""
    if section.function:
        return section.function
    if section.model:
        digest = resolve_base_model(section.model, MODEL_FIELD).digest
        return f"{section.model.source}@{digest[:12]}#{digest_json(section.instruction)[:8]}"
    return f"{section.endpoint_model}@{section.endpoint}#{digest_json(section.instruction)[:8]}"


def judge_of(section: JudgeSection) -> Judge:
    """The judge that a recipe names; a model's answers are all in the cache.

    Raises:
        RecipeError: The function is not there.
    """
    if section.model is not None:
        return _answered_before
    if section.function is None:
        return lambda prompt, first, second: _ask_endpoint(section, prompt, first, second)
    module, _, name = section.function.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"retrain.judge.function is {section.function!r}, which cannot be imported ({error}). "
            "Write `package.module:name`, importable where the worker runs."
        ) from error


def _answered_before(prompt: str, _first: str, _second: str) -> Choice:
    raise EvaluationError(
        f"stage judge has no answer about {prompt[:80]!r}. Run the retrain again."
    )


def question(instruction: str, prompt: str, first: str, second: str) -> str:
    """What a model is asked about two responses."""
    return TEMPLATE.format(instruction=instruction, prompt=prompt, first=first, second=second)


def _ask_endpoint(section: JudgeSection, prompt: str, first: str, second: str) -> Choice:
    content = question(section.instruction, prompt, first, second)
    body = {
        "model": section.endpoint_model,
        "temperature": 0,
        "max_tokens": REPLY_TOKENS,
        "messages": [{"role": "user", "content": content}],
    }
    endpoint = section.endpoint or ""
    try:
        reply = chat_reply(endpoint, body, section.timeout_seconds)
    except (OSError, ValueError) as error:
        address = f"{endpoint.rstrip('/')}/chat/completions"
        raise EvaluationError(
            f"the judge at {address} did not answer ({error}); the comparison is not scored. "
            "Run again when it is back: answers so far are kept."
        ) from error
    return parse(reply)


def parse(reply: str) -> Choice:
    """`tie` where the word stands, else the first of A and B in a reply; a reply with none is a tie."""
    if re.search(r"\btie\b", reply, re.IGNORECASE):
        return "tie"
    letter = re.search(r"\b[AB]\b", reply) or re.search(r"\b[abc]\b", reply)
    return CHOICES[letter.group().lower()] if letter else "tie"


def judge_spec(recipe: Recipe, home: Path, questions: Sequence[Question]) -> StageSpec:
    """Has the recipe's judge model answer; the same questions to the same model are Cached.

    Raises:
        RecipeError: The model is not there.
    """
    section = require_retrain(recipe).judge
    assert section is not None and section.model is not None
    model = resolve_base_model(section.model, MODEL_FIELD)
    digest = digest_json(questions)
    file = home / "work" / "judge" / f"{digest[:16]}.jsonl"
    atomic_write_text(file, "".join(json.dumps(asked) + "\n" for asked in questions))
    return StageSpec(
        stage="judge",
        home=str(home),
        params=JudgeParams(
            name=judge_name(section),
            instruction=section.instruction,
            model=NamedModel(source=section.model.source, digest=model.digest),
            dtype=resolve_dtype(recipe),
            questions=digest,
        ).as_json(),
        seed=0,
        compute=recipe.compute,
        paths={"questions": str(file), **({"model": model.path} if model.path else {})},
    )


def read_questions(spec: StageSpec) -> list[Question]:
    """What `judge_spec` wrote."""
    lines = Path(spec.paths["questions"]).read_text().splitlines()
    return [(prompt, first, second) for prompt, first, second in map(json.loads, lines)]
