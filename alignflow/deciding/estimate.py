"""What a decision will take and could find, said before it begins. No torch, no model.

Seconds are a rule of thumb: twice the parameters in operations for a token that is read or written,
six times for one that is trained on, and what a process takes to start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alignflow.data import RawRow, read_source
from alignflow.deciding.arms import ARMS, ORACLE, configurations_of
from alignflow.deciding.questions import Question, read_questions, split
from alignflow.evaluation import smallest_detectable_effect
from alignflow.pipeline import resolve_data_source
from alignflow.recipe import ArmName, DataSource, DecideSection, Recipe, require_decide
from alignflow.retrieval import documents_of
from alignflow.stages import Record, has_gpu

TOKENS_PER_WORD = 1.4
START_SECONDS = 2.0
OPERATIONS_PER_SECOND = {"cpu": 3e10, "gpu": 1e14}
USUAL_DISCORDANCE = 0.3
"""Share of questions that two arms answer differently, where nothing is known yet."""


class Estimate(Record):
    """Of a whole decision."""

    arms: list[str]
    questions: dict[str, int]
    """Of each part."""
    trainings: int
    hours: float
    cost: float
    detectable: float | None
    """Smallest difference that the verdict part would find; None where it would find none."""
    text: str


class _Texts(NamedTuple):
    """Tokens, about."""

    question: float
    answer: float
    documents: float


def estimate(recipe: Recipe, home: Path, parameters: int) -> Estimate:
    """What `alignflow decide` would take on this machine.

    Args:
        recipe: With its section `decide`.
        home: Where the ledger's rows are.
        parameters: Of the base model.

    Raises:
        DataError: Questions or documents cannot be read.
    """
    section = require_decide(recipe)
    questions = read_questions(r for s in section.questions for r in _rows(s, recipe, home))[0]
    parts = split(questions, section.verdict_share, demonstrated=bool(section.demonstrations))
    shown = [row for s in section.demonstrations for row in _rows(s, recipe, home)]
    counts = {
        "training": len(shown) or len(parts.training),
        "choice": len(parts.choice),
        "verdict": len(parts.verdict),
    }
    texts = _texts(recipe, questions)
    speed = OPERATIONS_PER_SECOND["gpu" if has_gpu() else "cpu"] / max(parameters, 1)
    arms = section.compared
    seconds = sum(_seconds(section, arm, counts, texts, speed) for arm in arms)
    trained = [arm for arm in arms if ARMS[arm].trained]
    trainings = len(trained) * (section.configurations + section.seeds - 1)
    tested = [arm for arm in arms if arm != ORACLE]
    alpha = section.alpha / max(2 * len(tested) - 3, 1)
    least = smallest_detectable_effect(counts["verdict"], alpha, section.power, USUAL_DISCORDANCE)
    cost = section.prices.hour * seconds / 3600.0
    return Estimate(
        arms=list(arms),
        questions=counts,
        trainings=trainings,
        hours=seconds / 3600.0,
        cost=cost,
        detectable=least,
        text=_said(section, counts, trainings, seconds, cost, least),
    )


def _rows(source: DataSource, recipe: Recipe, home: Path) -> Iterator[RawRow]:
    resolved = resolve_data_source(source, home, recipe.seed)
    return read_source(source, seed=recipe.seed, path=resolved.path)


def _texts(recipe: Recipe, questions: list[Question]) -> _Texts:
    section = require_decide(recipe)
    documents = [d for s in section.documents for d in documents_of(s, seed=recipe.seed)]
    asked = sum(len(question.text.split()) for question in questions) / max(len(questions), 1)
    answers = [len(target.split()) for question in questions for target in question.targets[:1]]
    words = sum(answers) / max(len(answers), 1)
    longest = float(recipe.evaluation.max_new_tokens)
    return _Texts(
        TOKENS_PER_WORD * asked + 10,
        min(longest, TOKENS_PER_WORD * words + 2),
        TOKENS_PER_WORD * sum(len(document.text.split()) for document in documents),
    )


def _seconds(
    section: DecideSection, arm: ArmName, counts: dict[str, int], texts: _Texts, speed: float
) -> float:
    """Of one arm: its tries on the choice part, then the verdict with every seed.

    Args:
        section: Of the recipe.
        arm: Its name.
        counts: Questions of each part.
        texts: How long they are.
        speed: Operations a second for each parameter.
    """
    row, tries = ARMS[arm], len(configurations_of(arm, section))
    seeds = section.seeds if row.trained else 1
    prompt = texts.question
    if row.context in ("retrieved", "oracle"):
        prompt += TOKENS_PER_WORD * section.retrieval.chunk_words * section.retrieval.passages
    prompt = min(prompt, float(section.prompt_tokens))
    read = 2.0 * (prompt + texts.answer)
    seconds = (tries * counts["choice"] + seeds * counts["verdict"]) * read / speed
    stages = 2 * tries + 2 * seeds
    if row.trained:
        epochs, longer = section.sft.num_train_epochs, section.pretrain.num_train_epochs
        learned = epochs * counts["training"] * (prompt + texts.answer)
        if row.pretrained_on:
            copies = 1 + section.paraphrases.per_document * ("paraphrases" in row.pretrained_on)
            learned += longer * texts.documents * copies
        trainings = tries + seeds - 1
        seconds += trainings * 6.0 * learned / speed
        stages += 2 * trainings
    return seconds + START_SECONDS * stages


def _said(
    section: DecideSection,
    counts: dict[str, int],
    trainings: int,
    seconds: float,
    cost: float,
    least: float | None,
) -> str:
    found = "no difference at all" if least is None else f"a difference of {100 * least:.0f} points"
    told = ", ".join(f"{count} {part}" for part, count in counts.items())
    long = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(seconds / 60, 1):.0f} min"
    return (
        f"{len(section.compared)} arms on {told} questions, {trainings} trainings: about {long} here "
        f"({section.prices.currency}{cost:.2g}); finds {found} with {section.power:.0%} power"
    )
