"""Batched generation: responses to many prompts, greedy or sampled.

Prompts are sorted by length and padded on the left; keys and values are cached; rows that ended
leave the batch. A sampled token is found by inverting the distribution function at a number that
depends on the seed, the prompt's place and the token's place only: batch size and the order of
work change nothing, and two models that are drawn with one seed share their luck, so that their
difference is less noisy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from alignflow.errors import EvaluationError

DROP_SHARE = 0.125
"""Rows leave the batch once this share of it has ended: each leave copies the cache."""


BLOCK_TOKENS = 64
"""Room that a layer's cache grows by. Growing by one token copies all of it each time."""


class BlockLayer(DynamicLayer):
    """Keys and values in tensors with room to spare."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Starts with no room."""
        super().lazy_initialization(key_states, value_states)
        self._room: tuple[Tensor, Tensor] | None = None

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
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows, with their room."""
        if self._room is not None:
            length = self.get_seq_length()
            self._room = (self._room[0][indices], self._room[1][indices])
            self.keys, self.values = (tensor[..., :length, :] for tensor in self._room)


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


class Response(NamedTuple):
    """Token ids of one response."""

    ids: list[int]
    """With the end token that closed it."""
    ended: bool
    """Whether it was closed by an end token, not by the limit."""

    @property
    def length(self) -> int:
        """Tokens, the end token left out."""
        return len(self.ids) - int(self.ended)


class Sampling(NamedTuple):
    """How the next token is chosen."""

    temperature: float | None
    uniforms: Tensor | None
    """[prompts, max_new_tokens], float64."""

    def choose(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """The next token of each row, [B], from logits [B, V]; `rows` are places of prompts."""
        if self.temperature is None or self.uniforms is None:
            return logits.argmax(dim=-1)
        shares = torch.softmax(logits.double() / self.temperature, dim=-1).cumsum(dim=-1)
        wanted = self.uniforms[rows, step].to(logits.device) * shares[:, -1]
        chosen = torch.searchsorted(shares, wanted.unsqueeze(1), right=True).squeeze(1)
        return chosen.clamp_(max=logits.shape[-1] - 1)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Responses as text, special tokens left out; the arguments are those of `respond`."""
    responses = respond(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        progress=progress,
    )
    return decode(tokenizer, responses)


def decode(tokenizer: Any, responses: Sequence[Response]) -> list[str]:
    """Text of responses, special tokens left out."""
    return tokenizer.batch_decode([list(r.ids) for r in responses], skip_special_tokens=True)


def respond(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Response]:
    """Responses as token ids, in the order of the prompts.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer; names the end and the padding token.
        prompts: Token ids, one list per prompt.
        max_new_tokens: Longest response.
        batch_size: Prompts at once; halved for as long as a batch does not fit the memory.
        temperature: None takes the most likely token.
        seed: Of the sampled responses.
        progress: Called with the number of prompts answered so far.

    Raises:
        EvaluationError: A prompt is empty, or the logits are not finite.
    """
    if any(not prompt for prompt in prompts):
        raise EvaluationError("A prompt has no tokens. Remove it from data.evaluation.")
    sampling = _sampling(len(prompts), max_new_tokens, temperature, seed)
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    answered: dict[int, Response] = {}
    model.eval()
    while order:
        places = order[:batch_size]
        try:
            rows = [prompts[place] for place in places]
            batch = _respond_batch(model, rows, places, sampling, ends, pad, max_new_tokens)
        except torch.OutOfMemoryError:
            if len(places) == 1:
                raise
            batch_size = len(places) // 2
            continue
        answered.update(zip(places, batch, strict=True))
        order = order[len(places) :]
        if progress:
            progress(len(answered))
    return [answered[place] for place in range(len(prompts))]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that close a response: the tokenizer's and those of the generation config."""
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    return {int(token) for token in (*several, tokenizer.eos_token_id) if token is not None}


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [B, T] each."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def accepted_arguments(model: Any) -> frozenset[str]:
    """Names of the arguments of the forward pass, through an adapter's wrapper."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)


def _sampling(count: int, steps: int, temperature: float | None, seed: int) -> Sampling:
    if temperature is None:
        return Sampling(None, None)
    generator = torch.Generator().manual_seed(seed)
    return Sampling(
        temperature, torch.rand((count, steps), generator=generator, dtype=torch.float64)
    )


@torch.inference_mode()
def _respond_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    places: Sequence[int],
    sampling: Sampling,
    ends: set[int],
    pad: int,
    max_new_tokens: int,
) -> list[Response]:
    """Responses to the prompts of one batch; `places` are their places among all prompts."""
    arguments = accepted_arguments(model)
    ids, mask = (tensor.to(model.device) for tensor in pad_left(prompts, pad))
    positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
    closing = torch.tensor(sorted(ends), device=ids.device)
    out = torch.full((len(prompts), max_new_tokens), pad, dtype=torch.long)
    lengths = torch.full((len(prompts),), max_new_tokens)
    ended = torch.zeros(len(prompts), dtype=torch.bool)

    rows = torch.arange(len(prompts))
    place_of = torch.tensor(list(places))
    cache = block_cache(model.config)
    for step in range(max_new_tokens):
        logits = _next_logits(model, arguments, ids, mask, positions, cache)
        chosen = sampling.choose(logits, place_of[rows], step)
        on_cpu = chosen.cpu()
        out[rows, step] = on_cpu
        closed = torch.isin(chosen, closing).cpu() & ~ended[rows]
        lengths[rows[closed]] = step + 1
        ended[rows[closed]] = True
        alive = ~ended[rows]
        if not alive.any():
            break
        ids, positions = chosen.unsqueeze(1), positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        if int((~alive).sum()) >= max(1.0, DROP_SHARE * len(rows)):
            keep = alive.nonzero().squeeze(1)
            rows = rows[keep]
            keep = keep.to(ids.device)
            ids, mask, positions = ids[keep], mask[keep], positions[keep]
            cache.batch_select_indices(keep)
    return [
        Response(out[row, : int(lengths[row])].tolist(), bool(ended[row]))
        for row in range(len(prompts))
    ]


def _next_logits(
    model: Any,
    arguments: frozenset[str],
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: DynamicCache,
) -> Tensor:
    """Logits of the next token, [B, V] in float32; the cache grows by `ids`."""
    optional = {"position_ids": positions, "logits_to_keep": 1}
    output = model(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in optional.items() if name in arguments},
    )
    logits = output.logits[:, -1].float()
    if not torch.isfinite(logits).all():
        raise EvaluationError(
            "The model's logits are not finite (NaN or inf), so it cannot be scored. Its training "
            "diverged; lower the learning rate."
        )
    return logits
