"""Where the files of an artifact are: each place has one name, whoever writes or reads it."""

from __future__ import annotations

from pathlib import Path

ADAPTER, MODEL = "adapter", "model"
"""Folders of what a training stage made, one of the two; a merge artifact's weights are in MODEL."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
"""What PEFT puts before a module's name in that file."""
SCORES_FILE = "scores.json"
RESPONSES_FILE = "responses.parquet"
JUDGEMENTS_FILE = "judgements.jsonl"
EVA_FILE = "eva.safetensors"
CHECKPOINTS = "checkpoints"
"""In a stage's work directory."""

WITHOUT_ANSWERS = "without_answers"
"""In a run's folder: the page that MLflow gets, for `prefs erase` does not reach every store."""


class Prepared:
    """Files of a `prepare` artifact."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base_model = directory / "base_model.json"
        """What the base model is."""
        self.location = directory / "location.json"
        """Where the base model is on this machine."""
        self.tokenizer = directory / "tokenizer"
        """Folder of the tokenizer with the chat template in force."""
        self.accounts = directory / "rows.json"
        """The row account of each part."""
        self.dropped = directory / "dropped.json"
        """Rows of the ledger that could not be used: id to reason."""
        self.evaluation = directory / "evaluation" / "prompts.parquet"
        """Prompts that models are judged on."""
        self.general = directory / "general" / "rows.parquet"
        """Text that forgetting is measured on."""

    def rows(self, part: str, name: str = "train") -> Path:
        """Folder of the rows of a part that is trained on, `train` or `held_out`, in Arrow shards."""
        return self.directory / part / name
