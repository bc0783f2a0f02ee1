"""Tensors of safetensors files as views of their memory maps."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from alignflow.models import FLOATS, Located


def torch_dtype(code: str) -> torch.dtype:
    """Torch's type for a header's word."""
    return getattr(torch, FLOATS[code])


class Reader:
    """Tensors of safetensors files as views of their memory maps: no copy, no anonymous memory."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def map(self, path: Path) -> mmap.mmap:
        """The whole file, private and writable because torch demands it; it is never written."""
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]

    def close(self, path: Path) -> None:
        """Forgets a file; its map goes when no view is left."""
        self._maps.pop(path, None)

    def view(self, located: Located) -> memoryview:
        """The bytes of one tensor."""
        return memoryview(self.map(located.path))[located.begin : located.begin + located.bytes]

    def tensor(self, located: Located) -> Tensor:
        """One tensor, not copied."""
        dtype = torch_dtype(located.dtype)
        if not located.elements:
            return torch.empty(located.shape, dtype=dtype)
        flat = torch.frombuffer(
            self.map(located.path), dtype=dtype, count=located.elements, offset=located.begin
        )
        return flat.reshape(located.shape)

    def factor(self, located: Located) -> Tensor:
        """An adapter's tensor in float32, where PEFT computes."""
        return self.tensor(located).to(torch.float32)
