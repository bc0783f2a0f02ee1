"""Groups of evaluation prompts, and which rows are among the held-out ones. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

PARAPHRASE, TEST, HOLDOUT = "paraphrase", "test", "holdout"


def main_places(groups: Sequence[str]) -> list[int]:
    """Prompts that figures such as `accuracy` are about: group `test`, else all but `paraphrase`, else all.

    The ledger's hold-out, which has no target, is among them only where there is nothing else.
    """
    names = set(groups) - {HOLDOUT} or set(groups)
    chosen = {TEST} if TEST in names else names - {PARAPHRASE} or names
    return [place for place, group in enumerate(groups) if group in chosen]


def falls_into(share: float, content: bytes) -> bool:
    """Whether content is in a share that is drawn by sha256, the same whenever it is asked."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < share * 2**64
