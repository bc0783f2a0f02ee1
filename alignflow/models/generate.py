"""Batched generation: responses to many prompts, greedy or sampled.

Prompts are sorted by length and padded on the left; keys and values are cached; rows that ended
leave the batch, and further prompts take their places. A model whose cache is its own reads the
whole text again for each token. A sampled token is found by inverting the
distribution function at a number that depends on the seed, the prompt's place and the token's place
only: batch size and the order of work change nothing, and two models that are drawn with one seed
share their luck, so that their difference is less noisy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from alignflow.data import ResponseContract, special_of
from alignflow.errors import EvaluationError
from alignflow.models.cache import (
    BlockLayer,
    attends,
    block_cache,
    can_join,
    can_select,
    joined,
    select,
    takes_cache,
)

Row = Sequence[int]
DROP_SHARE = 0.125
"""Rows leave the batch once this share of it has ended: each leave copies the cache."""
REFILL_SHARE = 0.25
"""Further prompts come in once this share of the batch is free: each time copies the cache."""


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

    def choose(self, logits: Tensor, places: Tensor, steps: Tensor) -> Tensor:
        """The next token of each row, [B], from its logits, [B, V].

        The rows answer the prompts at `places`, [B], and have `steps` tokens already, [B].
        """
        if self.temperature is None or self.uniforms is None:
            return logits.argmax(dim=-1)
        shares = torch.softmax(logits.double() / self.temperature, dim=-1).cumsum(dim=-1)
        wanted = self.uniforms[places, steps].to(logits.device) * shares[:, -1]
        chosen = torch.searchsorted(shares, wanted.unsqueeze(1), right=True).squeeze(1)
        return chosen.clamp_(max=logits.shape[-1] - 1)


def answers(tokenizer: Any, responses: Sequence[Sequence[int]]) -> list[str]:
    """What responses say, from their token ids, without special tokens and without reasoning.

    A response whose reasoning never ended says nothing.
    """
    contract = ResponseContract.kept_with(tokenizer) or ResponseContract()
    if contract.answer_follows is None:
        return tokenizer.batch_decode(responses, skip_special_tokens=True)
    special = special_of(tokenizer)
    written = tokenizer.batch_decode(responses, skip_special_tokens=False)
    return [_without(special, contract.parted(text)[1]) for text in written]


def _without(special: Sequence[str], text: str) -> str:
    for token in special:
        text = text.replace(token, "")
    return text


def respond(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Row],
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
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    work = _Work(model, tokenizer, prompts, sampling, max_new_tokens)
    model.eval()
    while not bool(work.done.all()):
        waiting = [place for place in order if not work.done[place]]
        try:
            work.answer(waiting, batch_size, progress)
        except torch.OutOfMemoryError:
            batch_size = min(batch_size, len(waiting)) // 2
            if batch_size == 0:
                raise
    return work.responses()


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a response: the tokenizer's, its contract's, and the generation config's."""
    contract = ResponseContract.kept_with(tokenizer)
    closes = tokenizer.convert_tokens_to_ids(list(contract.closes)) if contract else []
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    ends = (*several, *closes, tokenizer.eos_token_id)
    return {int(token) for token in ends if token is not None}


def padded(
    rows: Sequence[Row], value: int, side: Literal["left", "right"]
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [B, T] each."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    marks = [torch.ones_like(row) for row in tensors]
    ids = pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
    return ids, pad_sequence(marks, batch_first=True, padding_side=side)


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


class _Rows(NamedTuple):
    """Prompts that are being answered at once; B rows."""

    places: Tensor
    """Of their prompts among all, [B], on the CPU."""
    last: Tensor
    """The token chosen last, [B]."""
    mask: Tensor
    """1 on real tokens of those read, [B, T]."""
    read: DynamicCache | Tensor
    """What they left in the cache; of a model without one the tokens themselves, [B, T]."""

    @property
    def cache(self) -> DynamicCache | None:
        return self.read if isinstance(self.read, DynamicCache) else None

    def kept(self, chosen: Tensor) -> _Rows:
        """Some of the rows; columns that are padding in all of them go too."""
        at = chosen.to(self.mask.device)
        mask, cache = self.mask[at], self.cache
        if cache is None:
            return _Rows(self.places[chosen], self.last[at], mask, self.read[at])  # type: ignore[index]
        select(cache, at)
        unused = int((mask.sum(dim=0) > 0).nonzero()[0])
        if unused and can_join(cache):
            for layer in cache.layers:
                assert isinstance(layer, BlockLayer)
                layer.cut(unused)
            mask = mask[:, unused:]
        return _Rows(self.places[chosen], self.last[at], mask, cache)

    def with_rows(self, other: _Rows) -> _Rows:
        """The rows of both."""
        assert self.cache is not None and other.cache is not None
        length = max(self.mask.shape[1], other.mask.shape[1])
        masks = [pad(rows.mask, (length - rows.mask.shape[1], 0)) for rows in (self, other)]
        return _Rows(
            torch.cat([self.places, other.places]),
            torch.cat([self.last, other.last]),
            torch.cat(masks),
            joined(self.cache, other.cache),
        )


class _Work:
    """Prompts to answer, and what is answered so far."""

    def __init__(
        self, model: Any, tokenizer: Any, prompts: Sequence[Row], sampling: Sampling, longest: int
    ) -> None:
        ends, filler = end_tokens(model, tokenizer), tokenizer.pad_token_id
        self._filler = min(ends, default=0) if filler is None else filler
        self._model, self._prompts, self._sampling = model, prompts, sampling
        self._arguments = accepted_arguments(model)
        self._cache_name = "cache" if "cache" in self._arguments else "past_key_values"
        self._takes_cache = takes_cache(model)
        self._closing = torch.tensor(sorted(ends))
        self._out = torch.full((len(prompts), longest), self._filler, dtype=torch.long)
        self._lengths = torch.zeros(len(prompts), dtype=torch.long)
        self._closed = torch.zeros(len(prompts), dtype=torch.bool)
        self.done = torch.zeros(len(prompts), dtype=torch.bool)

    def responses(self) -> list[Response]:
        """In the order of the prompts."""
        ids = zip(self._out, self._lengths.tolist(), self._closed.tolist(), strict=True)
        return [Response(row[:length].tolist(), closed) for row, length, closed in ids]

    @torch.inference_mode()
    def answer(
        self, waiting: list[int], batch_size: int, progress: Callable[[int], None] | None
    ) -> None:
        """Answers the prompts in these places from their beginning."""
        self._lengths[waiting] = 0
        rows: _Rows | None = None
        while waiting or rows is not None:
            free = batch_size - (0 if rows is None else len(rows.places))
            if rows is None or (
                waiting and free >= REFILL_SHARE * batch_size and can_join(rows.cache)
            ):
                admitted = self._admitted(waiting[:free])
                waiting = waiting[len(admitted.places) :]
                rows = admitted if rows is None else rows.with_rows(admitted)
            else:
                rows = self._stepped(rows)
            alive = ~self.done[rows.places]
            ended = int((~alive).sum())
            if ended == len(alive):
                rows = None
            elif ended >= max(1.0, DROP_SHARE * len(alive)) and can_select(rows.cache):
                rows = rows.kept(alive.nonzero().squeeze(1))
            if progress and ended and (rows is None or len(rows.places) < len(alive)):
                progress(int(self.done.sum()))

    def _admitted(self, places: list[int]) -> _Rows:
        """The first of these prompts read, and the first token of their answers chosen.

        Without a cache only prompts of one length: a model's own state knows no padding.
        """
        if not self._takes_cache:
            length = len(self._prompts[places[0]])
            places = [place for place in places if len(self._prompts[place]) == length]
        ids, mask = padded([self._prompts[place] for place in places], self._filler, "left")
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
        cache = block_cache(self._model.config) if self._takes_cache else None
        logits = self._next_logits(ids, mask, positions, cache)
        at = torch.tensor(places)
        return _Rows(at, self._chosen(logits, at), mask, ids if cache is None else cache)

    def _stepped(self, rows: _Rows) -> _Rows:
        """The rows with one more token each."""
        mask = torch.cat([rows.mask, rows.mask.new_ones((len(rows.mask), 1))], dim=1)
        positions = mask.sum(dim=1, keepdim=True) - 1
        ids, read = rows.last.unsqueeze(1), rows.read
        if not isinstance(read, DynamicCache):
            ids = read = torch.cat([read, ids], dim=1)
            positions = mask.cumsum(dim=1) - 1
        logits = self._next_logits(ids, mask, positions, rows.cache)
        return _Rows(rows.places, self._chosen(logits, rows.places), mask, read)

    def _chosen(self, logits: Tensor, places: Tensor) -> Tensor:
        """Next tokens, [B]; those of rows that had not ended are written down."""
        steps = self._lengths[places].clamp(max=self._out.shape[1] - 1)
        chosen = self._sampling.choose(logits, places, steps)
        alive = ~self.done[places]
        writing, tokens = places[alive], chosen.cpu()[alive]
        self._out[writing, steps[alive]] = tokens
        self._lengths[writing] += 1
        closed = torch.isin(tokens, self._closing)
        self._closed[writing] = closed
        self.done[writing] = closed | (self._lengths[writing] == self._out.shape[1])
        return chosen

    def _next_logits(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None
    ) -> Tensor:
        """Logits of the next token, [B, V] in float32; the cache, if there is one, grows by `ids`."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        cached = {} if cache is None else {self._cache_name: cache}
        masked = cache is None or ids.shape[1] == mask.shape[1] or attends(cache)
        output = self._model(
            input_ids=ids,
            attention_mask=mask if masked else None,
            use_cache=cache is not None,
            **cached,
            **{name: value for name, value in optional.items() if name in self._arguments},
        )
        logits = output.logits[:, -1].float()
        if not torch.isfinite(logits).all():
            raise EvaluationError(
                "The model's logits are not finite (NaN or inf), so it cannot be scored. Its training "
                "diverged; lower the learning rate."
            )
        return logits
