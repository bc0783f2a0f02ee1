"""Safetensors files by their headers: which tensor lies where, without reading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.files import CHUNK_BYTES

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The format's own limit."""
DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that are merged, and torch's names for them."""


@dataclass(frozen=True)
class Located:
    """One tensor in one file."""

    name: str
    path: Path
    dtype: str
    """As the header spells it: BF16, F32, ..."""
    shape: tuple[int, ...]
    begin: int
    """Byte of the file at which its data begin."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


def read_header(path: Path) -> list[Located]:
    """Tensors of a safetensors file, in the order of their data.

    Raises:
        ArtifactError: The file is cut short or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ArtifactError(
                f"{path} is no whole safetensors file: {size} bytes, of which its header claims "
                f"{length}. Download or copy it again."
            )
        try:
            entries = json.loads(file.read(length))
        except ValueError as error:
            raise ArtifactError(
                f"{path} has no readable safetensors header ({error}). Download or copy it again."
            ) from error
    entries.pop("__metadata__", None)
    tensors = [_located(path, name, entry, 8 + length, size) for name, entry in entries.items()]
    return sorted(tensors, key=lambda tensor: (tensor.begin, tensor.name))


def _located(path: Path, name: str, entry: Mapping[str, Any], start: int, size: int) -> Located:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPE_BYTES:
        raise ArtifactError(
            f"{path}: tensor {name} has type {entry['dtype']}, which is not supported. "
            "Convert the model to bfloat16, float16 or float32 first."
        )
    tensor = Located(name, path, entry["dtype"], tuple(entry["shape"]), start + begin)
    if tensor.bytes != end - begin or start + end > size:
        raise ArtifactError(
            f"{path}: tensor {name} should have {tensor.bytes} bytes up to byte {start + end}; the "
            f"header says {end - begin}, the file ends at {size}. Download or copy it again."
        )
    return tensor


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of a file with these (name, dtype, shape) in this order, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def checkpoint_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, sorted by name.

    Raises:
        ArtifactError: There is none, or the index names one that is absent.
    """
    index = directory / INDEX_FILE
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (directory / SINGLE_FILE).is_file():
        names = [SINGLE_FILE]
    else:
        raise ArtifactError(
            f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}. Name a directory with "
            "safetensors weights; convert .bin files with save_pretrained first."
        )
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise ArtifactError(
            f"{index} names {absent[0]}, which is not there ({len(absent)} of {len(names)} files "
            "are absent). Finish the download."
        )
    return [directory / name for name in names]


def read_checkpoint(directory: Path) -> dict[str, list[Located]]:
    """File name to its tensors, for all files of a model.

    Raises:
        ArtifactError: A file is absent or damaged, or a tensor stands in two of them.
    """
    files = {path.name: read_header(path) for path in checkpoint_files(directory)}
    seen: dict[str, str] = {}
    for file, tensors in files.items():
        for tensor in tensors:
            if tensor.name in seen:
                raise ArtifactError(
                    f"{directory}: tensor {tensor.name} stands in {seen[tensor.name]} and in "
                    f"{file}. Write the model again with save_pretrained."
                )
            seen[tensor.name] = file
    return files


def read_tensors(directory: Path) -> dict[str, Located]:
    """Every tensor of a model by its name, file by file; see `read_checkpoint`."""
    return {tensor.name: tensor for held in read_checkpoint(directory).values() for tensor in held}


def same_bytes(first: Located, second: Located) -> bool:
    """Whether two tensors are equal, bit by bit, and of one type and shape."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    with first.path.open("rb") as one, second.path.open("rb") as two:
        one.seek(first.begin)
        two.seek(second.begin)
        sizes = (min(CHUNK_BYTES, first.bytes - at) for at in range(0, first.bytes, CHUNK_BYTES))
        return all(one.read(size) == two.read(size) for size in sizes)
