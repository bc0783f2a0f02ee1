"""What ships inside the package: one tiny base model and the data of one whole job.

The job is text-to-SQL for a generated freight company. No torch, no download, no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from alignflow.builtin.freight import (
    Split,
    Wording,
    company_documents,
    demonstrations,
    draw_examples,
    general_documents,
    tools,
)

_FREIGHT = Path(__file__).parent / "freight"
_BASE_MODELS = {"freight-base": _FREIGHT / "base"}

Row = dict[str, Any]


def base_model_names() -> list[str]:
    return sorted(_BASE_MODELS)


def base_model_directory(name: str) -> Path:
    """The directory of an embedded base model, in the layout of `save_pretrained`.

    Raises:
        KeyError: No such base model; the message lists those there are.
    """
    if name not in _BASE_MODELS:
        known = ", ".join(base_model_names())
        raise KeyError(f"no embedded base model is named {name!r}; there is {known}")
    return _BASE_MODELS[name]


def names() -> list[str]:
    return sorted(_DATA_SETS)


def rows(name: str, seed: int = 0) -> list[Row]:
    """The rows of an embedded data set, always the same for the same seed.

    - `freight-sft`: `prompt` and `completion` messages, `quality` (good, chatter or wrong).
    - `freight-preferences`: `prompt`, `chosen` and `rejected` messages, `split` (train or held_out)
      and `source` (on_policy, correction or synthetic).
    - `freight-feedback`: later preferences in the same shape, on other prompts, for a retrain.
    - `freight-prompts`: `prompt` messages of the training split and their `target`, for PPO.
    - `freight-evaluation`, `freight-development`: `prompt` messages, `target` for the judge, `group`
      (test or development, and paraphrase: held-out phrasings). Tune on the second only.
    - `freight-tools-sft`, `-preferences`, `-evaluation`, `-development`: the same questions for a
      model that calls functions, with `tools`.
    - `freight-domain`, `freight-replay`: `text` of company documents, and of anything else to mix
      in. `freight-general` is more of the latter, to measure forgetting on.

    Args:
        name: One of `names()`.
        seed: Draws other rows of `freight-sft`, `-tools-sft`, `-domain`, `-replay` and `-general`.
            The preferences and the evaluation sets are fixed.

    Raises:
        KeyError: No such data set; the message lists those there are.
    """
    if name not in _DATA_SETS:
        raise KeyError(f"no embedded data set is named {name!r}; there are {', '.join(names())}")
    return _DATA_SETS[name](seed)


def _evaluation(split: Split) -> list[Row]:
    groups: list[tuple[str, int, Wording]] = [(split, 240, "plain"), ("paraphrase", 80, "held_out")]
    return [
        {"prompt": example.messages, "target": example.target, "group": group}
        for group, count, wording in groups
        for example in draw_examples(
            Random(f"freight-evaluation/{split}/{group}"), split, count, wording=wording
        )
    ]


def _preferences(batch: str) -> list[Row]:
    with (_FREIGHT / "preferences.jsonl").open(encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in pair.items() if key != "batch"}
        for pair in pairs
        if pair["batch"] == batch
    ]


def _prompts() -> list[Row]:
    """Half in phrasings that the demonstrations do not have; every third asks for destruction.

    Refusals are what the SFT model rarely samples, and what is never sampled is never learned.
    """
    rng = Random("freight-prompts")
    wordings: list[Wording] = ["plain", "pretraining"]
    drawn = [e for w in wordings for e in draw_examples(rng, "train", 720, wording=w)]
    rng.shuffle(drawn)
    harmful = [example for example in drawn if example.query.intent == "destructive"]
    harmless = [example for example in drawn if example.query.intent != "destructive"]
    examples = [*harmful[:220], *harmless[:440]]
    rng.shuffle(examples)
    return [{"prompt": example.messages, "target": example.target} for example in examples]


def _texts(documents: list[str]) -> list[Row]:
    return [{"text": document} for document in documents]


_DATA_SETS: dict[str, Callable[[int], list[Row]]] = {
    "freight-sft": demonstrations,
    "freight-preferences": lambda _: _preferences("first"),
    "freight-feedback": lambda _: _preferences("later"),
    "freight-prompts": lambda _: _prompts(),
    "freight-evaluation": lambda _: _evaluation("test"),
    "freight-development": lambda _: _evaluation("development"),
    "freight-tools-sft": tools.demonstrations,
    "freight-tools-preferences": lambda _: tools.preferences(),
    "freight-tools-evaluation": lambda _: tools.evaluation("test"),
    "freight-tools-development": lambda _: tools.evaluation("development"),
    "freight-domain": lambda seed: _texts(company_documents(seed, 600)),
    "freight-replay": lambda seed: _texts(general_documents("replay", seed, 400)),
    "freight-general": lambda seed: _texts(general_documents("general", seed, 200)),
}
