"""A model's `tokenizer.json` through the `tokenizers` package alone, with what `Encoder` asks of it."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from alignflow.data.base import template_in_force, vocabulary_rows
from alignflow.data.template import special_tokens, tokenizer_config
from alignflow.data.tokens import Encoder
from alignflow.recipe import ModelSource


class PlainTokenizer:
    """Ids of texts, the same as the Transformers tokenizer's of the same files."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.init_kwargs = tokenizer_config(directory)
        tokens = special_tokens(self.init_kwargs)
        self.eos_token = tokens.get("eos_token")
        self.bos_token_id = self.convert_tokens_to_ids(tokens.get("bos_token"))
        self.all_special_tokens = list(tokens.values())
        self.added_tokens_decoder: dict[int, Any] = (
            self.backend_tokenizer.get_added_tokens_decoder()
        )

    def convert_tokens_to_ids(self, token: str | None) -> int | None:
        """The token's id; None where there is none."""
        return self.backend_tokenizer.token_to_id(token) if token else None

    @property
    def vocabulary(self) -> dict[str, int]:
        """Id of every token."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def plain_encoder(directory: Path, model: ModelSource, turns: Literal["all", "last"]) -> Encoder:
    """What makes token ids of rows, as `Spoken.encoder`, of a directory that `has_tokenizer`."""
    return Encoder(
        PlainTokenizer(directory),
        template_in_force(directory, model),
        turns=turns,
        vocabulary=vocabulary_rows(directory),
    )


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory's tokenizer can be read without Transformers."""
    return (directory / "tokenizer.json").is_file()


_ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


def added_tokens(directory: Path) -> dict[int, str]:
    """Tokens added to a tokenizer, by id; the vocabulary, which takes long to read, is left out."""
    text = (directory / "tokenizer.json").read_text(encoding="utf-8", errors="replace")
    found = _ADDED.search(text)
    entries: list[Any] = []
    with suppress(ValueError):  # no JSON, which is said where the tokenizer is loaded
        entries = json.JSONDecoder().raw_decode(text, found.end())[0] if found else []
    told: list[dict[str, Any]] = [entry for entry in entries if isinstance(entry, dict)]
    return {
        entry["id"]: str(entry.get("content")) for entry in told if isinstance(entry.get("id"), int)
    }


def vocabulary_problem(base: Path, other: Path) -> str | None:
    """What differs between the tokens of two models' directories, in a sentence; None for nothing.

    Tokens are compared where both have a `tokenizer.json`, else only how many there are.
    """
    ours, theirs = (vocabulary_rows(directory) for directory in (base, other))
    difference = None if ours == theirs else f"it has {theirs} outputs, the base model {ours}"
    if difference is None and has_tokenizer(base) and has_tokenizer(other):
        base_ids, other_ids = PlainTokenizer(base).vocabulary, PlainTokenizer(other).vocabulary
        for token in sorted(base_ids.keys() | other_ids.keys()):
            ours, theirs = base_ids.get(token), other_ids.get(token)
            if ours != theirs:
                difference = f"{token!r} has id {theirs} in it, {ours} in the base model"
                break
    return difference and (
        f"has another vocabulary than the base model: {difference}. Name a model of the same family."
    )
