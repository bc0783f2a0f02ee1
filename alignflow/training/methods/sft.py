"""Stage `sft`: supervised fine-tuning on demonstrations; TRL's trainer.

    L = mean over response tokens of -log p(token | prompt, tokens before it)

The mean is over the tokens of a whole update. Left out: loss on the prompt, and packing, which would
cut rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from alignflow.recipe import SFTSection
from alignflow.stages import RowAccount
from alignflow.training.engine import Measured, Row, Supervised, account, demonstration_rows


class SFT(Supervised[SFTSection]):
    """Learns the demonstrations."""

    section = SFTSection

    @cached_property
    def rows(self) -> Sequence[Row]:
        return demonstration_rows(self.job)

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        """Nothing is held out; the tokens that were read."""
        return Measured({}, {"tokens": last.get("num_tokens")})

    def account(self) -> RowAccount:
        return account(self.job, "sft", trained=len(self.rows))


run = SFT.run
