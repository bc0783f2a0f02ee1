"""Whether two models have the same tokens, by their files alone. No torch, no transformers."""

from __future__ import annotations

import json
from pathlib import Path

from alignflow.data.template import load_template, special_tokens

TOKENIZER_FILE = "tokenizer.json"


def vocabulary_difference(base: Path, other: Path) -> str | None:
    """Where the tokens of two models first differ, in words; None where none do.

    Tokens are compared where both have TOKENIZER_FILE, else only how many there are.
    """
    sizes = [_outputs(directory) for directory in (base, other)]
    if sizes[0] != sizes[1]:
        return f"it has {sizes[1]} outputs, the base model {sizes[0]}"
    files = [directory / TOKENIZER_FILE for directory in (base, other)]
    if not all(file.is_file() for file in files):
        return None
    ours, theirs = map(_tokens, files)
    for token in sorted(ours.keys() | theirs.keys()):
        places = [ids.get(token) for ids in (theirs, ours)]
        if places[0] != places[1]:
            named = ["no token" if place is None else f"id {place}" for place in places]
            return f"{token!r} is {named[0]} of it, {named[1]} of the base model"
    return None


def _outputs(directory: Path) -> int | None:
    """Rows of the head, which may be more than there are tokens."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config).get("vocab_size")


def _tokens(file: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


def reading_difference(base: Path, other: Path, template: Path | None) -> str | None:
    """What a model of the same tokens was taught to read differently, in words; None for nothing.

    Args:
        base: Directory of the base model.
        other: Of the other.
        template: That replaces the base's own chat template.
    """
    ends = [_end_token(directory) for directory in (base, other)]
    if all(ends) and ends[0] != ends[1]:
        return f"ends a response with {ends[1]!r}, the base model with {ends[0]!r}"
    ours, theirs = load_template(base, template), load_template(other)
    if ours and theirs and ours.digest != theirs.digest:
        return "has another chat template than the one in force"
    return None


def _end_token(directory: Path) -> str | None:
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return special_tokens(config).get("eos_token")
