"""Phrasings of the questions, as `phrases.yaml` has them: kind to phrases, in their order."""

from __future__ import annotations

from pathlib import Path

import yaml

Phrases = dict[str, tuple[str, ...]]
_FILE = Path(__file__).with_name("phrases.yaml")
_TABLES: dict[str, Phrases] = {
    table: {kind: tuple(phrases) for kind, phrases in kinds.items()}
    for table, kinds in yaml.safe_load(_FILE.read_text()).items()
}
AGGREGATE_WORDS = _TABLES["aggregate_words"]
DIRECTION_WORDS = _TABLES["direction_words"]
CONDITION_PHRASES = _TABLES["condition_phrases"]
TEMPLATES = _TABLES["templates"]
PRETRAINING_TEMPLATES = _TABLES["pretraining_templates"]
"""More phrasings, which only the base model's corpus has."""
HELD_OUT_TEMPLATES = _TABLES["held_out_templates"]
"""Phrasings that no training data has: the `paraphrase` group."""
