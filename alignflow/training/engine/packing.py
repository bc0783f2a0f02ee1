"""Documents packed into rows of one length, none of which sees another in its row.

Whether that holds depends on the architecture, and is proved before it is relied on.
"""

from __future__ import annotations

from enum import Enum
from itertools import accumulate, chain
from random import Random
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, AutoModelForCausalLM
from trl.data_utils import pack_dataset
from trl.trainer.utils import pad

from alignflow.models import NO_TOY, BaseModel, device, quiet, toy_config, toy_model, toy_texts

IGNORED = -100
EXACT = 1e-5
"""Difference of a toy's logits that is rounding."""


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


class Packing(Enum):
    """How the documents of a row are kept apart."""

    POSITIONS = "positions"
    """Positions begin anew with each, of which Transformers makes a block-diagonal mask."""
    LENGTHS = "lengths"
    """Their places are given too, to what is no attention; a batch is one row then."""
    OFF = "off"
    """Each has a row of its own."""


def packing_of(model: Any) -> Packing:
    """How a model packs documents without one seeing another: each answers as it does alone.

    Tried on three short ones, in the type that the model has; a toy in float32 proves it.
    """
    documents = toy_texts(7, 5, 9)
    joint = {"input_ids": [*chain(*documents)], "seq_lengths": [len(ids) for ids in documents]}
    with torch.no_grad():
        rows = [torch.tensor([ids], device=model.device) for ids in documents]
        alone = torch.cat([model(input_ids=row).logits[0] for row in rows])
        for way in (Packing.POSITIONS, Packing.LENGTHS):
            batch = PackedCollator(0, way)([joint])
            del batch["labels"]
            tensors = {name: _on(model.device, value) for name, value in batch.items()}
            try:
                packed = model(**tensors, use_cache=False).logits[0]
            except (TypeError, ValueError, RuntimeError):
                continue  # it does not take what parts documents, so it does not part them
            if (packed - alone).abs().max() <= EXACT:
                return way
    return Packing.OFF


def _on(place: torch.device, value: Any) -> Any:
    return value.to(place) if isinstance(value, torch.Tensor) else value


def proved_packing(base: BaseModel) -> Packing:
    """How a model's architecture packs, here; not at all where no toy of it can be made."""
    attention = base.attention if base.attention in ("eager", "sdpa") else None
    with quiet():
        config = AutoConfig.from_pretrained(base.path, trust_remote_code=False)
        try:
            model = toy_model(AutoModelForCausalLM, toy_config(config), attention)
        except NO_TOY:
            return Packing.OFF
        return packing_of(model.to(device()))


def apart(documents: list[list[int]], length: int) -> list[dict[str, list[int]]]:
    """Rows of one document, or of a part of one that is longer than `length`."""
    parts = [ids[at : at + length] for ids in documents for at in range(0, len(ids), length)]
    return [{"input_ids": ids, "seq_lengths": [len(ids)]} for ids in parts]


class PackedCollator:
    """Batches of packed rows, or of documents alone, padded on the right."""

    def __init__(self, pad_token_id: int, packing: Packing = Packing.POSITIONS) -> None:
        self._pad_token_id = pad_token_id
        self._packing = packing

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A document's first token has no label: nothing predicts it."""
        if self._packing is Packing.LENGTHS:
            names = ("input_ids", "seq_lengths")
            rows = [{name: [*chain(*(row[name] for row in rows))] for name in names}]
        ids = pad([torch.tensor(row["input_ids"]) for row in rows], self._pad_token_id)
        positions, attention = torch.zeros_like(ids), torch.zeros_like(ids)
        for place, row in enumerate(rows):
            lengths = [*row["seq_lengths"], ids.shape[1] - len(row["input_ids"])]
            positions[place] = torch.cat([torch.arange(length) for length in lengths])
            attention[place, : len(row["input_ids"])] = 1
        labels = ids.masked_fill((positions == 0) | (attention == 0), IGNORED)
        batch = {"input_ids": ids, "labels": labels}
        if self._packing is Packing.OFF:
            return {**batch, "attention_mask": attention}
        parted = _boundaries(rows[0]["seq_lengths"]) if self._packing is Packing.LENGTHS else {}
        return {**batch, "position_ids": positions, **parted}


def _boundaries(lengths: list[int]) -> dict[str, Any]:
    """Where documents begin and which one each token is of, under the names of TRL's collator."""
    counts = torch.tensor(lengths)
    ends = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).to(torch.int32)
    number = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), counts)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": number[None],
    }
