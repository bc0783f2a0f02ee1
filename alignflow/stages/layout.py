"""Where the files of an artifact are: each place has one name, whoever writes or reads it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ADAPTER, MODEL = "adapter", "model"
"""Folders of what a training stage made, one of the two; a merge artifact's weights are in MODEL."""
SCORES_FILE = "scores.json"
RESPONSES_FILE = "responses.parquet"
JUDGEMENTS_FILE = "judgements.jsonl"
EVA_FILE = "eva.safetensors"
CHECKPOINTS = "checkpoints"
"""In a stage's work directory."""


class Prepared(NamedTuple):
    """Files of a `prepare` artifact."""

    directory: Path

    @property
    def base_model(self) -> Path:
        """What the base model is."""
        return self.directory / "base_model.json"

    @property
    def location(self) -> Path:
        """Where the base model is on this machine."""
        return self.directory / "location.json"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer with the chat template in force."""
        return self.directory / "tokenizer"

    @property
    def accounts(self) -> Path:
        """The row account of each part."""
        return self.directory / "rows.json"

    @property
    def dropped(self) -> Path:
        """Rows of the ledger that could not be used: id to reason."""
        return self.directory / "dropped.json"

    def rows(self, part: str, name: str = "train") -> Path:
        """Rows of a part of the data that is trained on, `train` or `held_out`."""
        return self.directory / part / f"{name}.parquet"

    @property
    def evaluation(self) -> Path:
        """Prompts that models are judged on."""
        return self.directory / "evaluation" / "prompts.parquet"

    @property
    def general(self) -> Path:
        """Text that forgetting is measured on."""
        return self.directory / "general" / "rows.parquet"
