"""Writing shards: header first, then tensor by tensor; hashed while written, synced, certified."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.errors import DiskSpaceError
from alignflow.files import atomic_write_json, fsync_directory, sha256_file
from alignflow.merging.direct_file import DirectFile
from alignflow.merging.merge_plan import MergePlan, ShardPlan
from alignflow.models.headers import FLOATS, header_bytes

STATE = ".merge"
"""Directory in the result, gone when it is complete: one certificate per finished shard."""
COPY_BYTES = 8 * 1024 * 1024
HASH_BYTES = 64 * 1024 * 1024


@dataclass
class Written:
    """What is known of a finished shard."""

    sha256: str
    bytes: int
    source_sha256: str | None
    finite: bool


def finished_shard(out: Path, plan: MergePlan, shard: ShardPlan) -> Written | None:
    """What an earlier call of the same plan finished; None where it must be written (again)."""
    record, file = out / STATE / f"{shard.file}.json", out / shard.file
    try:
        content = json.loads(record.read_text())
        if content["plan"] != plan.digest or file.stat().st_size != content["bytes"]:
            return None
        if sha256_file(file) != content["sha256"]:
            return None
        return Written(
            content["sha256"], content["bytes"], content["source_sha256"], content["finite"]
        )
    except (OSError, ValueError, KeyError):
        return None


def sha256_mapped(path: Path) -> str:
    """Hex digest of a base's file, read where the merge reads it: from its memory map."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        for begin in range(0, len(view), HASH_BYTES):
            with view[begin : begin + HASH_BYTES] as part:
                digest.update(part)
    return digest.hexdigest()


def write_shard(
    out: Path, plan: MergePlan, shard: ShardPlan, *, source_digest: Future[str] | None,
    progress: Callable[[int], None], arithmetic: Any,
) -> Written:  # fmt: skip
    """Writes one shard and certifies it.

    Args:
        out: Directory of the merged model.
        plan: Whose digest the shard's certificate names.
        shard: What to write.
        source_digest: sha256 of the base's file, which another thread is computing.
        progress: Told of bytes as they are handed to the writer.
        arithmetic: `arithmetic.Arithmetic`, which computes the blocks.

    Raises:
        DiskSpaceError: The disk is full.
    """
    target = out / shard.file
    partial = target.with_name(f".{shard.file}.partial")
    header = header_bytes([(t.name, t.dtype, t.shape) for t in shard.tensors])
    finite = True
    try:
        with DirectFile(partial, len(header) + shard.bytes) as file:
            file.write(memoryview(header))
            for block, good in _blocks(shard, arithmetic):
                finite = finite and good
                file.write(block)
                progress(len(block))
            digest, size = file.finish(), file.bytes
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskSpaceError(
            f"{partial}: no space left for its {len(header) + shard.bytes:,} bytes. Free some, "
            "then run the same command again: finished files are kept."
        ) from error
    os.replace(partial, target)
    fsync_directory(out)
    source = source_digest.result() if source_digest else None
    written = Written(digest, size, source, finite)
    atomic_write_json(out / STATE / f"{shard.file}.json", {"plan": plan.digest, **vars(written)})
    return written


def _blocks(shard: ShardPlan, arithmetic: Any) -> Iterator[tuple[memoryview, bool]]:
    """Bytes of all tensors in order, and whether what was computed is finite."""
    from alignflow.merging.arithmetic import as_bytes, is_finite

    for tensor in shard.tensors:
        if tensor.copied:
            view = arithmetic.reader.view(tensor.source)
            numbers = tensor.source.dtype in FLOATS
            values = arithmetic.reader.tensor(tensor.source).reshape(-1) if numbers else None
            for begin in range(0, len(view), COPY_BYTES):
                end = begin + COPY_BYTES
                good = values is None or is_finite(
                    values[begin // values.element_size() : end // values.element_size()]
                )
                yield view[begin:end], good
        else:
            for block in arithmetic.blocks(tensor):
                yield as_bytes(block), is_finite(block)
