"""Keys and values of tokens read so far, for batches whose rows come and go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

BLOCK_TOKENS = 64
"""Room that a layer's cache grows by. Growing by one token copies all of it each time."""


class BlockLayer(DynamicLayer):
    """Keys and values in tensors with room to spare."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._room: tuple[Tensor, Tensor] | None = None

    def _hold(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Takes tensors with room to spare, whose first `length` tokens are in use."""
        self._room = (keys, values)
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new tokens and returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            capacity = end + BLOCK_TOKENS
            self._room = (
                _grown(self.keys, key_states, start, capacity),
                _grown(self.values, value_states, start, capacity),
            )
        keys, values = self._room
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self._hold(keys, values, end)
        return keys[..., :end, :], values[..., :end, :]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows, with their room."""
        if self._room is not None:
            keys, values = self._room
            self._hold(keys[indices], values[indices], self.get_seq_length())

    @classmethod
    def joined(cls, first: BlockLayer, second: BlockLayer) -> BlockLayer:
        """The rows of both, aligned at their last token; what is before a row's first is zero."""
        length = max(first.get_seq_length(), second.get_seq_length())
        capacity = length + BLOCK_TOKENS
        layer = cls()
        held: list[Any] = [(part.keys, part.values) for part in (first, second)]
        layer.lazy_initialization(*held[0])
        keys = torch.cat([_shifted(keys, length, capacity) for keys, _ in held])
        values = torch.cat([_shifted(values, length, capacity) for _, values in held])
        layer._hold(keys, values, length)
        return layer

    def cut(self, columns: int) -> None:
        """Takes away the first tokens of every row."""
        if self._room is not None:
            keys, values = (held[..., columns:, :] for held in self._room)
            self._hold(keys, values, self.get_seq_length() - columns)


def _shifted(held: Tensor, length: int, capacity: int) -> Tensor:
    """`held` at the end of `length` tokens, with room up to `capacity`."""
    room = held.new_zeros((*held.shape[:-2], capacity, held.shape[-1]))
    room[..., length - held.shape[-2] : length, :] = held
    return room


def _grown(held: Tensor | None, new: Tensor, start: int, capacity: int) -> Tensor:
    """An empty tensor in the shape of `new` with room for `capacity` tokens, `held` copied in."""
    room = new.new_empty((*new.shape[:-2], capacity, new.shape[-1]))
    if start and held is not None:
        room[..., :start, :] = held
    return room


def block_cache(config: Any) -> DynamicCache:
    """A cache for a model, with room to spare in each layer that attends to everything."""
    cache = DynamicCache(config=config)
    cache.layers = [
        BlockLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def takes_cache(model: Any) -> bool:
    """Whether a model grows a cache that it is given; RWKV and its kin keep states of their own."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner._supports_default_dynamic_cache()


def attends(cache: DynamicCache) -> bool:
    """Whether a layer looks back at tokens; states alone hold no padding that a mask could hide."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def can_select(cache: DynamicCache | None) -> bool:
    """Whether rows can leave: every layer is of a kind that is known here, and not a model's own."""
    return cache is None or all(
        isinstance(layer, BlockLayer) or type(layer).__module__ == cache_utils.__name__
        for layer in cache.layers
    )


def select(cache: DynamicCache, rows: Tensor) -> None:
    """Keeps some rows. A recurrent layer has states beside keys and values, or alone."""
    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(rows)  # type: ignore[arg-type]
        else:
            layer.batch_select_indices(rows)


def can_join(cache: DynamicCache | None) -> bool:
    """Whether rows can be added: every layer attends to everything."""
    return cache is not None and all(isinstance(layer, BlockLayer) for layer in cache.layers)


def joined(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """A cache with the rows of both."""
    cache = DynamicCache()
    layers: list[Any] = [
        BlockLayer.joined(one, other)
        for one, other in zip(first.layers, second.layers, strict=True)
        if isinstance(one, BlockLayer) and isinstance(other, BlockLayer)
    ]
    cache.layers = layers
    return cache
