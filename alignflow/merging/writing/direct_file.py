"""One large file, hashed while it is written, past the page cache where the file system allows.

Writing through the page cache costs a copy and a page of memory for every 4 KiB; a model is read
back much later, if at all. Hashing and writing run beside the caller, each in order.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

BUFFER_BYTES = 8 * 1024 * 1024
BUFFERS = 4
ALIGNMENT = 4096
COPY_BYTES = 1024 * 1024
"""Copied at a time: Python runs nothing else meanwhile."""
O_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """A file that is written once from start to end; the disk is asked for its `size` at once.

    Raises:
        OSError: As of `open` and `write`; a full disk is found at the start where it can be.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._descriptor = _open(path)
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._hasher, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(BUFFERS)]
        self._views = [memoryview(buffer) for buffer in self._buffers]
        self._busy: list[tuple[Future[Any], ...]] = [() for _ in range(BUFFERS)]
        self._current, self._filled = 0, 0
        try:
            _reserve(self._descriptor, size)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview) -> None:
        """Appends; `data` may be changed afterwards."""
        begin = 0
        while begin < len(data):
            count = min(BUFFER_BYTES - self._filled, len(data) - begin, COPY_BYTES)
            end = self._filled + count
            self._views[self._current][self._filled : end] = data[begin : begin + count]
            begin, self._filled, self.bytes = begin + count, end, self.bytes + count
            if self._filled == BUFFER_BYTES:
                self._hand_over()

    def finish(self) -> str:
        """Makes the file durable; returns its sha256."""
        if self._filled:
            self._hand_over()
        for future in chain.from_iterable(self._busy):
            future.result()  # raises what its thread met
        os.ftruncate(self._descriptor, self.bytes)
        os.fsync(self._descriptor)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Ends the threads and gives memory and descriptor back."""
        self._hasher.shutdown()
        self._writer.shutdown()
        for view, buffer in zip(self._views, self._buffers, strict=True):
            view.release()
            buffer.close()
        os.close(self._descriptor)

    def _hand_over(self) -> None:
        view, filled = self._views[self._current], self._filled
        # The last one is padded to what a direct write demands, and cut off again.
        padded = filled + (-filled % ALIGNMENT)
        view[filled:padded] = bytes(padded - filled)
        self._busy[self._current] = (
            self._hasher.submit(_hash, self._digest, view[:filled]),
            self._writer.submit(_write, self._descriptor, view[:padded]),
        )
        self._current, self._filled = (self._current + 1) % BUFFERS, 0
        for future in self._busy[self._current]:
            future.result()

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system has no direct writes
            raise
        return os.open(path, flags, 0o666)


def _reserve(descriptor: int, size: int) -> None:
    """Room for the whole file, in one piece where there is one."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _hash(digest: Any, view: memoryview) -> None:
    with view:
        digest.update(view)


def _write(descriptor: int, view: memoryview) -> None:
    with view:
        begin = 0
        while begin < len(view):
            with view[begin:] as left:
                begin += _write_some(descriptor, left)


def _write_some(descriptor: int, left: memoryview) -> int:
    try:
        return os.write(descriptor, left)
    except OSError as error:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & O_DIRECT:
            raise
        # Opened for direct writes, which the file system then refuses, or in other pieces.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~O_DIRECT)
        return os.write(descriptor, left)
