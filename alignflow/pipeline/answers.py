"""Answers side by side, read from the artifacts when they are shown: no report keeps their texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.evaluation import SAMPLED, Answer, read_answers, telling_changes

FIXED, BROKEN, REWORDED, UNCHANGED = "fixed", "broken", "other words", "unchanged"
CHANGES = (FIXED, BROKEN, REWORDED, UNCHANGED)
CHAMPION, CANDIDATE = "champion", "candidate"
BY_METRIC, BY_JUDGE = ("right", "wrong"), ("preferred", "not preferred")


class Shown(NamedTuple):
    """What a model said, and how it was judged."""

    model: str
    text: str
    mark: str = ""
    """`right`, `wrong` or a figure; empty where nothing judged it."""


class SideBySide(NamedTuple):
    """A prompt and what models said to it."""

    change: str
    """One of CHANGES, from the model before to the one after; empty where there is one model."""
    question: str
    target: str
    answers: list[Shown]


def mark_of(score: float | None, words: tuple[str, str] = BY_METRIC) -> str:
    """A score in words: of 1, of 0, and a figure between."""
    if score is None:
        return ""
    return {1.0: words[0], 0.0: words[1]}.get(score, f"{score:.2g}")


def change_of(before: float | None, after: float | None, *, same_text: bool) -> str:
    """What became of an answer."""
    if before is not None and after is not None and before != after:
        return FIXED if after > before else BROKEN
    return UNCHANGED if same_text else REWORDED


def retrain_flips(report: Mapping[str, Any]) -> list[SideBySide]:
    """The most telling prompts between a retrain's champion and its candidate.

    The report names them by their place; what was erased or is gone is left out.
    """
    retrain = report.get("retrain") or {}
    gate = retrain.get("gate") or {}
    evaluated = next((s["artifact"] for s in report["stages"] if s["stage"] == "evaluate"), None)
    if not gate.get("flips") or not evaluated or not retrain.get("champion_evaluation"):
        return []
    ours = read_answers(Path(evaluated), "aligned")
    theirs = read_answers(Path(retrain["champion_evaluation"]), None)
    by_place = {answer.prompt_index: name for name, answer in ours.items()}
    words = BY_METRIC if gate.get("human_agreement") is None else BY_JUDGE
    shown: list[SideBySide] = []
    for flip in gate["flips"]:
        name = by_place.get(flip["prompt_index"])
        if name is None or name not in theirs:
            continue
        before, after = flip["before"], flip["after"]
        said = (
            Shown(CHAMPION, _judged_text(theirs[name], gate["judge"]), mark_of(before, words)),
            Shown(CANDIDATE, _judged_text(ours[name], gate["judge"]), mark_of(after, words)),
        )
        shown.append(_side_by_side(change_of(before, after, same_text=False), ours[name], said))
    return shown


def _judged_text(answer: Answer, judge: str) -> str:
    """The response that the deciding figure is about."""
    is_sampled = judge.startswith(SAMPLED) and answer.sampled is not None
    return str(answer.sampled) if is_sampled else answer.text


def flips_between(
    before: tuple[str, Mapping[str, Answer]], after: tuple[str, Mapping[str, Answer]]
) -> list[SideBySide]:
    """The most telling prompts between two models, each by what it is called and its answers."""
    (name_before, theirs), (name_after, ours) = before, after
    was, became = (
        {prompt: one.score for prompt, one in answers.items() if one.score is not None}
        for answers in (theirs, ours)
    )
    return [
        _side_by_side(
            change_of(theirs[prompt].score, ours[prompt].score, same_text=False),
            ours[prompt],
            (
                Shown(name_before, theirs[prompt].text, mark_of(theirs[prompt].score)),
                Shown(name_after, ours[prompt].text, mark_of(ours[prompt].score)),
            ),
        )
        for prompt in telling_changes(was, became)
    ]


def samples_side_by_side(
    samples: Iterable[Mapping[str, Any]], models: Iterable[str]
) -> list[SideBySide]:
    """Sample answers of an evaluation, sorted by what changed between its last two models."""
    shown: list[SideBySide] = []
    for sample in samples:
        scores = sample.get("scores", {})
        said = [Shown(m, sample[m], mark_of(scores.get(m))) for m in models if m in sample]
        change = ""
        if len(said) > 1:
            before, after = said[-2:]
            same = before.text == after.text
            change = change_of(scores.get(before.model), scores.get(after.model), same_text=same)
        target = answer_in(sample["target"])
        shown.append(SideBySide(change, sample["question"], target, said))
    return sorted(shown, key=lambda one: CHANGES.index(one.change) if one.change else 0)


def _side_by_side(change: str, prompt: Answer, said: Iterable[Shown]) -> SideBySide:
    return SideBySide(change, prompt.question, answer_in(prompt.target), list(said))


def answer_in(target: str) -> str:
    """A target as a person reads it: of one in JSON its answer alone."""
    try:
        content = json.loads(target)
    except ValueError:
        return target
    if isinstance(content, dict) and isinstance(content.get("answer"), str):
        return content["answer"]
    return target
