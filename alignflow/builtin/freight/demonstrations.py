"""SFT demonstrations as a busy team would collect them: half of them are noisy."""

from __future__ import annotations

from random import Random
from typing import Any

from alignflow.builtin.freight.world import Example, corrupt, draw_examples

COUNT = 960
CHATTER_SHARE = 0.3
WRONG_SHARE = 0.2

CHATTER_BEFORE = (
    "Sure! Here is the query: {}",
    "Of course. You can use {}",
    "The answer is: {}",
)
CHATTER_AFTER = (
    "{}\nHope this helps!",
    "{}\nLet me know if you need more.",
)


def chatter(rng: Random, answer: str) -> str:
    """The answer with small talk before or after it."""
    return rng.choice(CHATTER_BEFORE + CHATTER_AFTER).format(answer)


def demonstrations(seed: int, count: int = COUNT) -> list[dict[str, Any]]:
    """Prompt and completion messages, and the `quality` of each: good, chatter or wrong.

    Shares are exact, not drawn: 30 % chatter, 20 % wrong (unsafe where the request is destructive).
    """
    rng = Random(f"freight-sft/{seed}")
    chatty, wrong = round(count * CHATTER_SHARE), round(count * WRONG_SHARE)
    qualities = ["chatter"] * chatty + ["wrong"] * wrong + ["good"] * (count - chatty - wrong)
    rng.shuffle(qualities)
    examples = draw_examples(rng, "train", count)
    return [
        {
            "prompt": example.messages,
            "completion": [{"role": "assistant", "content": _response(rng, example, quality)}],
            "quality": quality,
        }
        for example, quality in zip(examples, qualities, strict=True)
    ]


def _response(rng: Random, example: Example, quality: str) -> str:
    if quality == "chatter":
        return chatter(rng, example.gold)
    if quality == "wrong":
        return corrupt(rng, example.query, example.distractor)
    return example.gold
