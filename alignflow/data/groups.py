"""Groups of evaluation prompts, and which of them a figure without a group's name is about. No torch."""

from __future__ import annotations

from collections.abc import Sequence

PARAPHRASE, TEST, HOLDOUT = "paraphrase", "test", "holdout"


def main_places(groups: Sequence[str]) -> list[int]:
    """Prompts that `accuracy` is about: group `test`, else all but `paraphrase`, else all.

    The ledger's hold-out, which has no target, is among them only where there is nothing else.
    """
    names = set(groups) - {HOLDOUT} or set(groups)
    chosen = {TEST} if TEST in names else names - {PARAPHRASE} or names
    return [place for place, group in enumerate(groups) if group in chosen]
