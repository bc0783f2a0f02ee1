"""What is compared: each arm by what its prompt holds and what it was trained on. No torch."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from alignflow.recipe import ArmName, Configuration, DecideSection

Context = Literal["none", "few-shot", "retrieved", "oracle"]
"""What stands before a question: nothing, demonstrations, passages found, passages that hold the answer."""


class Arm(NamedTuple):
    """One way to have questions answered."""

    context: Context = "none"
    pretrained_on: tuple[Literal["documents", "paraphrases"], ...] = ()
    tuned: bool = False
    """Whether SFT is part of it."""

    @property
    def trained(self) -> bool:
        """Whether it has weights of its own, which depend on a seed."""
        return self.tuned


ARMS: dict[ArmName, Arm] = {
    "base": Arm(),
    "few-shot": Arm("few-shot"),
    "rag": Arm("retrieved"),
    "oracle": Arm("oracle"),
    "sft": Arm(tuned=True),
    "pretrain": Arm(pretrained_on=("documents",), tuned=True),
    "pretrain-paraphrases": Arm(pretrained_on=("documents", "paraphrases"), tuned=True),
    "sft-rag": Arm("retrieved", tuned=True),
}
ORACLE: ArmName = "oracle"
"""Tells errors of retrieval from those of reading; nobody could deploy it."""
BASE: ArmName = "base"
TERSE = "Give the answer alone, in as few words as possible."
CAREFUL = "Answer exactly what is asked, and nothing that you do not know."


def configurations_of(arm: ArmName, section: DecideSection) -> list[Configuration]:
    """What an arm tries on the choice part, its default first; the same number for every arm."""
    if arm in section.tries:
        return section.tries[arm]
    ways = {
        "none": [{}, {"instruction": TERSE}, {"instruction": CAREFUL}],
        "few-shot": [{}, {"nearest": True}, {"shots": 2 * SHOTS}],
        "retrieved": _passages(section.retrieval.passages),
        "oracle": [{}, {"instruction": TERSE}, {"instruction": CAREFUL}],
    }
    tried = _trainings(arm, section) if ARMS[arm].tuned else ways[ARMS[arm].context]
    return [Configuration.model_validate(fields) for fields in tried[: section.configurations]]


SHOTS = 4
"""Demonstrations that few-shot shows by default."""


def _passages(usual: int) -> list[dict[str, Any]]:
    return [{}, {"passages": 1 if usual > 1 else 3}, {"passages": 2 * usual}]


def _trainings(arm: ArmName, section: DecideSection) -> list[dict[str, Any]]:
    longer: dict[str, Any]
    rate, epochs = section.sft.learning_rate, section.sft.num_train_epochs
    if ARMS[arm].pretrained_on:
        longer = {"pretrain_epochs": 2.0 * section.pretrain.num_train_epochs}
    else:
        longer = {"num_train_epochs": 2.0 * epochs}
    return [{}, longer, {"learning_rate": rate / 3.0}]


def described(configuration: Configuration) -> str:
    """A configuration in a few words; `default` where it changes nothing."""
    given = configuration.model_dump(exclude_defaults=True)
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "default"
