"""GGUF files by their headers: the model that one holds, without torch, Transformers or `gguf`.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.errors import RecipeError

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
KINDS = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"},
    **{22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
"""Types of tensors by their number in the format."""
ARCHITECTURES = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen35", "qwen35moe"),
        *("gpt-oss", "lfm2", "falcon", "phi3", "bloom", "stablelm", "gpt2", "starcoder2", "mamba"),
        *("nemotron", "gemma2", "gemma3", "gemma4", "deci", "minimax-m2"),
    }
)
"""Decoders that Transformers reads."""
SPLITS_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""Values of `tokenizer.ggml.pre` of byte-level tokenizers that take each digit for itself, before
they split as GPT-2 does. Transformers leaves that out."""
SPLITS_READ = frozenset(
    {
        *("gpt-2", "phi-2", "olmo", "mpt"),
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        *("jina-v5-nano", "dbrx", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "kormo"),
        *("f2llmv2", "megrez", "qwen35", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
    }
)
"""Those of tokenizers that Transformers splits right."""
ROPE_FACTORS = "rope_freqs.weight"


class GgufTensor(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """As torch has it."""
    kind: str
    """Such as Q4_1."""
    offset: int
    """Of its data, in those of all tensors."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class GgufHeader(NamedTuple):
    """What a file says of itself."""

    path: Path
    metadata: dict[str, Any]
    """Of an array of strings, such as the vocabulary, only the length."""
    tensors: list[GgufTensor]
    data_begin: int
    """Byte of the file at which tensors' data begin."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """The type of most weights."""
        elements: Counter[str] = Counter()
        for tensor in self.tensors:
            elements[tensor.kind] += tensor.elements
        return elements.most_common(1)[0][0]

    def of_model(self, name: str) -> Any:
        """A figure that the architecture has of its own, such as `context_length`."""
        return self.metadata.get(f"{self.architecture}.{name}")


class _Reader:
    """Values one after another, from a file that may end anywhere."""

    def __init__(self, blob: mmap.mmap) -> None:
        self.blob, self.place = blob, 0

    def take(self, form: str, count: int = 1) -> tuple[Any, ...]:
        layout = f"<{form}" if count == 1 else f"<{count}{form}"
        values = struct.unpack_from(layout, self.blob, self.place)
        self.place += struct.calcsize(layout)
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        (value,) = self.take(f"{min(length, len(self.blob) + 1)}s")
        return value.decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(SCALARS[kind])[0]
        element, count = self.take("IQ")
        if element != STRING:
            return list(self.take(SCALARS[element], min(count, len(self.blob) + 1)))
        for _ in range(count):
            self.place += 8 + struct.unpack_from("<Q", self.blob, self.place)[0]
        return count

    def tensor(self) -> GgufTensor:
        name = self.text()
        (dimensions,) = self.take("I")
        shape = self.take("Q", dimensions)
        kind, offset = self.take("IQ")
        return GgufTensor(name, shape[::-1], KINDS.get(kind, f"number {kind}"), offset)


def read_gguf(path: Path, field: str) -> GgufHeader:
    """The header of a file; no weight is read.

    Raises:
        RecipeError: It is no GGUF file, or is cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            header = _header(path, blob)
            size = len(blob)
    except (struct.error, ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        raise RecipeError(
            f"{field}: {path} is no whole GGUF file ({type(error).__name__}: {error}). Download or "
            "copy it again."
        ) from error
    last = max((tensor.offset for tensor in header.tensors), default=0)
    if header.data_begin + last >= size:
        raise RecipeError(
            f"{field}: {path} is cut short: it has {size:,} bytes, its last tensor begins at byte "
            f"{header.data_begin + last:,}. Download or copy it again."
        )
    return header


def _header(path: Path, blob: mmap.mmap) -> GgufHeader:
    reader = _Reader(blob)
    magic, version, tensors, entries = reader.take("4sIQQ")
    if magic != b"GGUF":
        raise ValueError(f"it begins with {magic!r}, not b'GGUF'")
    if version not in VERSIONS:
        raise ValueError(f"format version {version}; {VERSIONS} are read")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        name = reader.text()
        metadata[name] = reader.value(reader.take("I")[0])
    found = [reader.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    return GgufHeader(path, metadata, found, -(-reader.place // alignment) * alignment)


def demand_supported(header: GgufHeader, field: str) -> None:
    """Refuses a file whose model would not be read right.

    Raises:
        RecipeError: Names everything that is wrong.
    """
    if problems := list(_problems(header)):
        raise RecipeError(f"{field}: {header.path}: {' '.join(problems)}")


def _problems(header: GgufHeader) -> Iterator[str]:
    metadata = header.metadata
    split, pre = metadata.get("split.count", 0), metadata.get("tokenizer.ggml.pre")
    if split > 1:
        yield f"it is one of {split} parts. Join them first (llama-gguf-split --merge)."
        return
    if header.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        yield f"architecture {header.architecture!r} is not read. Take one of {known}."
    if "tokenizer.ggml.tokens" not in metadata:
        yield "it holds no tokenizer. Take a file that does."
    elif metadata.get("tokenizer.ggml.model") == "gpt2" and (
        pre not in SPLITS_READ | SPLITS_DIGITS
    ):
        yield (
            f"its tokenizer splits text in a way that is not known here ({pre!r}), so that tokens "
            "would be others than the model's. Name the original model."
        )
    if any(tensor.name == ROPE_FACTORS for tensor in header.tensors):
        yield (
            f"it scales positions by {ROPE_FACTORS}, which Transformers leaves out. Name the "
            "original model."
        )
    unknown = sorted({t.kind for t in header.tensors if t.kind.startswith("number ")})
    if unknown:
        yield f"it has tensors of type {', '.join(unknown)}, which is not known here."
