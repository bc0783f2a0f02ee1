"""What a row's own `split` says of it. No torch."""

from __future__ import annotations

from typing import Any

from alignflow.data.rejected import BadRow
from alignflow.recipe import SPLITS

TRAINING = SPLITS["train"]
JUDGING = ("held_out", *SPLITS["test"], *SPLITS["validation"], "evaluation")


def is_for_training(fields: dict[str, Any]) -> bool | None:
    """Whether the row is to be trained on; None where it does not say.

    Raises:
        BadRow: It says something that is no known split.
    """
    split = fields.get("split")
    if split is None or split == "":
        return None
    if isinstance(split, str) and split in TRAINING:
        return True
    if isinstance(split, str) and split in JUDGING:
        return False
    known = ", ".join((*TRAINING, *JUDGING))
    raise BadRow(
        "unknown_split",
        f"split is {split!r:.60}, wanted one of {known}. Rename it, or leave the column out",
    )
