"""Shards are written past the page cache, with their digest, and as well where that cannot be."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from alignflow.errors import DiskSpaceError
from alignflow.merging import MergeOptions, merge
from alignflow.merging.writing import direct_file
from alignflow.merging.writing.direct_file import ALIGNMENT, BUFFER_BYTES, DirectFile
from alignflow.models.headers import header_bytes

SIZES = [0, 1, ALIGNMENT, BUFFER_BYTES - 1, BUFFER_BYTES, 5 * BUFFER_BYTES + 4097]


def written(path: Path, content: bytes) -> str:
    with DirectFile(path, len(content)) as file:
        begin, step = 0, 1
        while begin < len(content):
            file.write(memoryview(content)[begin : begin + step])
            begin, step = begin + step, step * 3
        return file.finish()


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_and_their_digest_are_those_put_in(size: int, tmp_path: Path) -> None:
    content = os.urandom(4099) * (size // 4099 + 1)
    content = content[:size]
    digest = written(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content
    assert digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_file_system_without_direct_writes_is_written_through_the_cache(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: dict[str, Any] = {"open": os.open, "write": os.write}
    refusals: list[str] = []

    def is_direct(first: Any, flags: int) -> bool:
        if refused == "write":
            flags = direct_file.fcntl.fcntl(first, direct_file.fcntl.F_GETFL)
        return bool(flags & os.O_DIRECT)

    def refusing(first: Any, second: Any, *rest: Any) -> Any:
        if is_direct(first, second if refused == "open" else 0):
            refusals.append(refused)
            raise OSError(errno.EINVAL, "no direct writes here")
        return real[refused](first, second, *rest)

    monkeypatch.setattr(direct_file.os, refused, refusing)
    content = bytes(range(256)) * 1000
    assert written(tmp_path / "file", content) == hashlib.sha256(content).hexdigest()
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == content and refusals


@pytest.mark.slow
def test_a_disk_that_fills_up_is_said_so_and_what_a_thread_meets_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = [("model.embed_tokens.weight", "F32", (64, 64))]
    (base / "model.safetensors").write_bytes(header_bytes(tensors) + bytes(4 * 64 * 64))
    (base / "config.json").write_text('{"model_type": "llama"}')

    def full(_descriptor: int, _data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_file.os, "write", full)
    with pytest.raises(DiskSpaceError, match="run the same command again"):
        merge(base, [], tmp_path / "out", MergeOptions(verify=False))
