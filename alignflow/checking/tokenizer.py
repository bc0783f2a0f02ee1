"""A model's `tokenizer.json` through the `tokenizers` package alone, with what `Encoder` asks of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignflow.data.template import special_tokens


class PlainTokenizer:
    """Ids of texts, the same as the Transformers tokenizer's of the same files."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokens = special_tokens(config)
        self.bos_token_id = self._id(tokens.get("bos_token"))
        self.eos_token_id = self._id(tokens.get("eos_token"))
        ids = (self._id(token) for token in tokens.values())
        self.all_special_ids = [index for index in ids if index is not None]
        self.added_tokens_decoder: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()

    def _id(self, token: str | None) -> int | None:
        return self._tokenizer.token_to_id(token) if token else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory's tokenizer can be read without Transformers."""
    return (directory / "tokenizer.json").is_file()
