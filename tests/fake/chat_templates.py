"""Chat templates that models are published with, as TRL's package carries them, and a tokenizer for each."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_MARK = re.compile(
    r"<\|[^<>|]{1,40}\|?>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|</?[a-z_]{1,20}\|?>|\[/?[A-Z_]{3,20}\]|\[gMASK\]"
)
_TEXT = re.compile(r"</?(think|tools?|tool_call|tool_response|function|arg_key|arg_value)>")
"""Marks that tokenizers have as ordinary added tokens: they are part of the text."""
END = "<|endoftext|>"
REFUSED = {"deepseek_r1_distill", "deepseekv3"}
"""Their generation prompt opens reasoning, their conversations leave it out, and no argument helps."""
ARGUMENTS = {
    **{
        f"nemotron_3{size}": {"enable_thinking": False}
        for size in ("_nano", "_super", "_ultra", "_5_lightning")
    },
}
"""What templates must be given so that a conversation continues its generation prompt."""


@cache
def directory() -> Path:
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "chat_templates"


def names() -> list[str]:
    """Of the templates as they were published."""
    stems = (path.stem for path in directory().glob("*.jinja"))
    return sorted(stem for stem in stems if not stem.endswith("_training"))


def source(name: str) -> str:
    return (directory() / f"{name}.jinja").read_text()


def training_source(name: str) -> str | None:
    """TRL's template with marks around what has loss, where it has one."""
    path = directory() / f"{name}_training.jinja"
    return path.read_text() if path.is_file() else None


def tokenizer(template: str) -> Any:
    """A byte-level tokenizer of Transformers that knows the template's own marks as tokens."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bare.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    marks = sorted({match.group() for match in _MARK.finditer(template)})
    text = [mark for mark in marks if _TEXT.fullmatch(mark)]
    special = [mark for mark in marks if mark not in text]
    bare.add_special_tokens([*special, "<bos>", END])
    bare.add_tokens([AddedToken(mark, normalized=False) for mark in text])
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<bos>",
        eos_token=END,
        pad_token=END,
        chat_template=template,
    )
