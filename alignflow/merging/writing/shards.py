"""The shards of a merged model: header first, then tensor by tensor; hashed while written, synced.

A finished shard has a record of its own, so that a second call continues a killed one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignflow.errors import DiskSpaceError
from alignflow.files import atomic_write_json, fsync_directory, sha256_file
from alignflow.merging.planning import MergeOptions, MergePlan, ShardPlan
from alignflow.merging.writing.direct_file import DirectFile
from alignflow.models import FLOATS, header_bytes

if TYPE_CHECKING:
    from alignflow.merging.writing.arithmetic import Arithmetic

STATE = ".merge"
"""Directory in the result, gone when it is complete: one record per finished shard."""
COPY_BYTES = 8 * 1024 * 1024
TOLD_TIMES = 500
"""At most, that progress is told of, whatever the size."""
Progress = Callable[[int, int], None]


@dataclass
class Written:
    """What is known of a finished shard."""

    sha256: str
    bytes: int
    source_sha256: str | None
    finite: bool


def write_weights(
    plan: MergePlan, out: Path, options: MergeOptions, progress: Progress
) -> dict[str, Written]:
    """Writes every shard that is not there yet; returns what is known of each file.

    Raises:
        DiskSpaceError: The disk is full.
    """
    progress(0, plan.bytes)
    finished = {shard.file: _finished(out, plan, shard) for shard in plan.shards}
    written = {file: shard for file, shard in finished.items() if shard is not None}
    left = [shard for shard in plan.shards if shard.file not in written]
    told = _Told(progress, plan.bytes, plan.bytes - sum(shard.bytes for shard in left))
    with ThreadPoolExecutor(1) as hasher:  # busy while torch is imported, and beside the writer
        hashed = left if options.base_digest is None else []
        sources = {s.file: hasher.submit(sha256_file, plan.base / s.file) for s in hashed}
        try:
            from alignflow.merging.writing.arithmetic import Arithmetic
            from alignflow.merging.writing.row_blocks import threads

            writer = _ShardWriter(out, plan, Arithmetic(options.block_bytes), told)
            with threads(1):  # where the result depends on it, Arithmetic takes the number it met
                for shard in left:
                    written[shard.file] = writer.write(shard, sources.get(shard.file))
                    writer.arithmetic.reader.close(plan.base / shard.file)
            return written
        finally:
            for source in sources.values():
                source.cancel()


class _Told:
    """Tells of bytes done, at most TOLD_TIMES times."""

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress = progress
        self._total = total
        self._done = self._last = done

    def add(self, count: int) -> None:
        self._done += count
        if self._done - self._last >= self._total / TOLD_TIMES or self._done == self._total:
            self._last = self._done
            self._progress(self._done, self._total)


class _ShardWriter(NamedTuple):
    """Writes shards of one plan, each with its record."""

    out: Path
    plan: MergePlan
    arithmetic: Arithmetic
    told: _Told

    def write(self, shard: ShardPlan, source: Future[str] | None) -> Written:
        partial = self.out / f".{shard.file}.partial"
        header = header_bytes([(t.name, t.dtype, t.shape) for t in shard.tensors])
        finite = True
        try:
            with DirectFile(partial, len(header) + shard.bytes) as file:
                file.write(memoryview(header))
                for block, good in self._blocks(shard):
                    finite = finite and good
                    file.write(block)
                    self.told.add(len(block))
                digest, size = file.finish(), file.bytes
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskSpaceError(
                f"{partial}: no space left for its {len(header) + shard.bytes:,} bytes. Free some, "
                "then run the same command again: finished files are kept."
            ) from error
        os.replace(partial, self.out / shard.file)
        fsync_directory(self.out)
        written = Written(digest, size, source.result() if source else None, finite)
        record = {"plan": self.plan.digest, **vars(written)}
        atomic_write_json(_record(self.out, shard), record)
        return written

    def _blocks(self, shard: ShardPlan) -> Iterator[tuple[memoryview, bool]]:
        """Bytes of all tensors in order, and whether what was computed is finite."""
        from alignflow.merging.writing.arithmetic import as_bytes, is_finite

        reader = self.arithmetic.reader
        for tensor in shard.tensors:
            if tensor.copied:
                view = reader.view(tensor.source)
                numbers = tensor.source.dtype in FLOATS
                values = reader.tensor(tensor.source).reshape(-1) if numbers else None
                for begin in range(0, len(view), COPY_BYTES):
                    end = begin + COPY_BYTES
                    good = values is None or is_finite(
                        values[begin // values.element_size() : end // values.element_size()]
                    )
                    yield view[begin:end], good
            else:
                for block in self.arithmetic.blocks(tensor):
                    yield as_bytes(block), is_finite(block)


def _record(out: Path, shard: ShardPlan) -> Path:
    return out / STATE / f"{shard.file}.json"


def _finished(out: Path, plan: MergePlan, shard: ShardPlan) -> Written | None:
    """What an earlier call of the same plan finished; None where it must be written (again)."""
    file = out / shard.file
    try:
        content = json.loads(_record(out, shard).read_text())
        if content.pop("plan") != plan.digest or file.stat().st_size != content["bytes"]:
            return None
        return Written(**content) if sha256_file(file) == content["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
