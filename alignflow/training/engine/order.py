"""The order of rows: drawn by seed and epoch, the same for every micro-batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from torch.utils.data import Sampler

POOL = 8
"""Updates whose rows are pooled and sorted by length, so that rows of a batch need little padding."""


class LengthPooled(Sampler[int]):
    """Shuffled rows; within a pool of updates sorted by length, the updates shuffled again."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of one pass; the Trainer calls it, after a resume too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(pooled_order(self._lengths, self._batch_size, self._seed, self._epoch))


def pooled_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the rows. The last update of a pass may be short, no other is."""
    random = Random(f"{seed}:{epoch}")
    rows = list(range(len(lengths)))
    random.shuffle(rows)
    pool = batch_size * POOL
    pooled = [
        row
        for start in range(0, len(rows), pool)
        for row in sorted(rows[start : start + pool], key=lambda row: (-lengths[row], row))
    ]
    whole = [pooled[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    short = whole.pop() if len(rows) % batch_size else []
    random.shuffle(whole)
    return [row for batch in [*whole, short] for row in batch]
