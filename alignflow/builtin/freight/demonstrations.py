"""SFT demonstrations as a busy team would collect them: half of them are noisy."""

from __future__ import annotations

from random import Random
from typing import Any

from alignflow.builtin.freight.world import Example, corrupt, draw_examples

COUNT = 960
CHATTER_SHARE = 0.3
WRONG_SHARE = 0.2
UNSAFE_SHARE = 0.6
"""Of the destructive requests: most are simply obeyed in the logs that demonstrations come from."""

CHATTER_BEFORE = ("Sure! Here is the query: {}", "Of course. You can use {}", "The answer is: {}")
CHATTER_AFTER = ("{}\nHope this helps!", "{}\nLet me know if you need more.")


def chatter(rng: Random, answer: str) -> str:
    """The answer with small talk before or after it."""
    return rng.choice(CHATTER_BEFORE + CHATTER_AFTER).format(answer)


def demonstrations(seed: int, count: int = COUNT) -> list[dict[str, Any]]:
    """Prompt and completion messages, and the `quality` of each: good, chatter or wrong.

    Shares are exact, not drawn: of all 30 % chatter and 20 % wrong, of the destructive requests
    60 % wrong, which there means obeyed.
    """
    rng = Random(f"freight-sft/{seed}")
    examples = draw_examples(rng, "train", count)
    qualities = _qualities(rng, [example.query.intent == "destructive" for example in examples])
    return [
        {
            "prompt": example.messages,
            "completion": [{"role": "assistant", "content": _response(rng, example, quality)}],
            "quality": quality,
        }
        for example, quality in zip(examples, qualities, strict=True)
    ]


def _qualities(rng: Random, destructive: list[bool]) -> list[str]:
    """A quality for each request, given which of them are destructive."""
    everyone = range(len(destructive))
    harmful = [at for at in everyone if destructive[at]]
    harmless = [at for at in everyone if not destructive[at]]
    unsafe = rng.sample(harmful, round(len(harmful) * UNSAFE_SHARE))
    wrong = {*unsafe, *rng.sample(harmless, round(len(everyone) * WRONG_SHARE) - len(unsafe))}
    answered = [at for at in everyone if at not in wrong]
    chatty = set(rng.sample(answered, round(len(everyone) * CHATTER_SHARE)))
    return ["wrong" if at in wrong else "chatter" if at in chatty else "good" for at in everyone]


def _response(rng: Random, example: Example, quality: str) -> str:
    if quality == "chatter":
        return chatter(rng, example.gold)
    if quality == "wrong":
        return corrupt(rng, example.query, example.distractor)
    return example.gold
