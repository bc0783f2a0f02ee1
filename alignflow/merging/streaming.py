"""Writing shards: header first, then tensor by tensor; hashed while written, synced, certified."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignflow.errors import DiskSpaceError
from alignflow.files import atomic_write_json, fsync_directory, sha256_file
from alignflow.merging.headers import header_bytes
from alignflow.merging.planning import MergePlan, ShardPlan

STATE = ".merge"
"""Directory in the result, gone when it is complete: one certificate per finished shard."""
COPY_BYTES = 8 * 1024 * 1024
WRITE_BEHIND_BYTES = 64 * 1024 * 1024
QUEUED_BLOCKS = 4
SYNC_FILE_RANGE_WRITE = 2


@dataclass
class Written:
    """What is known of a finished shard."""

    sha256: str
    bytes: int
    source_sha256: str | None
    finite: bool


@dataclass
class _Job:
    """One shard on its way to the disk."""

    path: Path
    queue: queue.Queue[memoryview | None] = field(
        default_factory=lambda: queue.Queue(QUEUED_BLOCKS)
    )
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    error: BaseException | None = None


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
    job = _Job(target.with_name(f".{shard.file}.partial"))
    thread = threading.Thread(target=_write, args=(job,), daemon=True)
    thread.start()
    finite = True
    try:
        _put(job, memoryview(_header(shard)))
        for block, good in _blocks(shard, arithmetic):
            finite = finite and good
            _put(job, block)
            progress(len(block))
    finally:
        _finish(job, thread)
    os.replace(job.path, target)
    fsync_directory(out)
    source = source_digest.result() if source_digest else None
    written = Written(job.digest.hexdigest(), job.size, source, finite)
    atomic_write_json(out / STATE / f"{shard.file}.json", {"plan": plan.digest, **vars(written)})
    return written


def _header(shard: ShardPlan) -> bytes:
    return header_bytes([(t.name, t.dtype, t.shape) for t in shard.tensors])


def _blocks(shard: ShardPlan, arithmetic: Any) -> Iterator[tuple[memoryview, bool]]:
    """Bytes of all tensors in order, and whether what was computed is finite."""
    from alignflow.merging.arithmetic import as_bytes, is_finite

    for tensor in shard.tensors:
        if tensor.copied:
            view = arithmetic.reader.view(tensor.source)
            for begin in range(0, len(view), COPY_BYTES):
                yield view[begin : begin + COPY_BYTES], True
        else:
            for block in arithmetic.blocks(tensor):
                yield as_bytes(block), is_finite(block)


def _put(job: _Job, block: memoryview) -> None:
    while job.error is None:
        try:
            job.queue.put(block, timeout=0.2)
            return
        except queue.Full:
            continue
    _raise(job)


def _finish(job: _Job, thread: threading.Thread) -> None:
    while job.error is None and thread.is_alive():
        try:
            job.queue.put(None, timeout=0.2)
            break
        except queue.Full:
            continue
    thread.join()
    if job.error is not None:
        _raise(job)


def _raise(job: _Job) -> None:
    if isinstance(job.error, OSError) and job.error.errno in (28, 122):
        raise DiskSpaceError(
            f"{job.path}: no space left after {job.size:,} bytes. Free some, then run the same "
            "command again: finished files are kept."
        ) from job.error
    if job.error is not None:
        raise job.error


def _write(job: _Job) -> None:
    try:
        with job.path.open("wb", buffering=0) as file:
            behind = 0
            while (block := job.queue.get()) is not None:
                job.digest.update(block)
                left = block
                while left:
                    left = left[file.write(left) :]
                job.size += len(block)
                if job.size - behind > WRITE_BEHIND_BYTES:
                    _start_writing(file.fileno(), behind, job.size - behind)
                    behind = job.size
            os.fsync(file.fileno())
    except BaseException as error:
        job.error = error


def _start_writing(descriptor: int, offset: int, length: int) -> None:
    """Asks the kernel to begin writing back now, so that the fsync at the end finds little left."""
    if sync_file_range := getattr(_libc, "sync_file_range", None):
        sync_file_range(
            descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), SYNC_FILE_RANGE_WRITE
        )


_libc = ctypes.CDLL(None)
