"""Documents packed into rows of one length, none of which sees another in its row."""

from __future__ import annotations

from itertools import accumulate
from random import Random
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from torch import Tensor
from trl.data_utils import pack_dataset
from trl.trainer.utils import pad

IGNORED = -100


def packed(documents: list[list[int]], length: int) -> list[dict[str, list[int]]]:
    """Rows of at most `length` tokens, `input_ids` and the `seq_lengths` of the documents in them.

    Every token is kept: a document longer than a row goes on in another (TRL's best fit decreasing).
    """
    disable_progress_bars()
    whole = Dataset.from_dict({"input_ids": documents})
    return pack_dataset(whole, seq_length=length, strategy="bfd_split").to_list()


def with_replay(
    documents: list[list[int]], replay: list[list[int]], share: float, seed: int
) -> list[list[int]]:
    """Documents, and general texts drawn until they have `share` of all tokens or run out."""
    wanted = share / (1 - share) * sum(map(len, documents))
    texts = Random(f"{seed}:replay").sample(replay, len(replay))
    before = accumulate(map(len, texts), initial=0)
    drawn = [text for text, so_far in zip(texts, before, strict=False) if so_far < wanted]
    return [*documents, *drawn]


class PackedCollator:
    """Pads packed rows. Positions begin anew with each document, and that alone parts documents.

    Transformers makes a block-diagonal mask of such positions where there is no attention mask.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A document's first token has no label: nothing predicts it."""
        ids = pad([torch.tensor(row["input_ids"]) for row in rows], self._pad_token_id)
        positions = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            lengths = [*row["seq_lengths"], ids.shape[1] - len(row["input_ids"])]
            positions[place] = torch.cat([torch.arange(length) for length in lengths])
        labels = ids.masked_fill(positions == 0, IGNORED)
        for place, row in enumerate(rows):
            labels[place, len(row["input_ids"]) :] = IGNORED
        return {"input_ids": ids, "position_ids": positions, "labels": labels}
