"""Whether merged and base plus adapter are the same model: logits, greedy text, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from alignflow.data import context_length
from alignflow.merging.certificate import Figures
from alignflow.merging.planning import AdapterStep, model_config, quantized_modules
from alignflow.merging.verifying.reference import (
    adapted,
    merged_in_turn,
    merged_values,
    streamed_logits,
    streamed_model,
)
from alignflow.merging.verifying.weights import compared_weights
from alignflow.merging.writing import dequantized
from alignflow.models import (
    BaseModel,
    device,
    load_base,
    load_merged,
    quiet,
    read_tensors,
    with_vocabulary,
)
from alignflow.stages import available_bytes

PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Write one sentence about the sea. The sea is wide, and nobody has counted its waves.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # prints 5",
    "Q: What is the capital of France? A: Paris. Q: And of Japan? A: Tokyo.",
)
PROBE_TOKENS, DRAWN_TOKENS, ENOUGH_TOKENS = 512, 64, 1024
"""Of one probe, of one whose ids are drawn, and of all."""
LOGITS_BYTES = 1024**3
"""Of all probes of one model in float32: they are cut to it."""
USUAL_VOCABULARY = 150_000
GREEDY_PROBES, GREEDY_TOKENS = 4, 16
LATENCY_REPEATS = 7
TIE_NATS = 0.05
"""Tokens whose log-probabilities differ by no more are alike: which of them is first is rounding."""
MEMORY_SHARE = 0.7
"""Of the available memory that a model in float32 may take before it is streamed instead."""


def verify(
    base: Path,
    adapters: Sequence[AdapterStep],
    merged: Path,
    probes: Sequence[str] | Sequence[list[int]],
    quantization: str | None = None,
    streamed: bool | None = None,
    merged_into: str | None = None,
) -> Figures:
    """Compares merged with base plus adapter on the probes, both computing in float32.

    Without adapters it is compared with the base itself, without probes on texts of our own; `nf4`
    compares with the adapters on the quantized base, as they were trained. Where a model in float32
    does not fit the memory (`must_stream`, asked now for None), it is run layer by layer from the
    disk, its greedy agreement is teacher-forced, and its latency is None. Every written tensor is held
    against base plus adapters as PEFT merges them, the base `merged_into` NF4's values where it was.
    """
    ids, config = probe_ids(merged, probes), model_config(merged)
    if streamed is None:
        streamed = must_stream(base, adapters, config, quantization)
    if streamed:
        expected = streamed_logits(streamed_model(base, adapters, quantization, config), ids)
        actual = streamed_logits(streamed_model(merged), ids)
        figures = compare(expected, actual, ids)
        agreed = figures.top1_agreement
        summed = merged_in_turn(base, adapters, merged_into, config)
        weights = compared_weights(summed, base, merged, len(adapters))
        return figures.model_copy(
            update={"streamed": True, "greedy_agreement": agreed, "weights": weights}
        )
    reference, base_seconds = _reference(base, adapters, config, ids, quantization)
    expected, expected_text = logits_of(reference, ids), _greedy(reference, ids)
    if quantization or merged_into:
        del reference  # its weights are packed
        reference = _summed(base, adapters, config, merged_into)
    weights = compared_weights(merged_values(reference), base, merged, len(adapters))
    del reference
    model = load_merged(merged, "float32")
    actual, actual_text = logits_of(model, ids), _greedy(model, ids)
    seconds = _seconds(model, ids) if base_seconds else None
    same = [one == other for one, other in zip(expected_text, actual_text, strict=True)]
    return compare(expected, actual, ids).model_copy(
        update={
            "greedy_agreement": sum(same) / max(len(same), 1),
            "latency_ratio": seconds / base_seconds if seconds and base_seconds else None,
            "weights": weights,
        }
    )


def must_stream(
    base: Path,
    adapters: Sequence[AdapterStep],
    changes: Mapping[str, Any],
    quantization: str | None = None,
) -> bool:
    """Whether base plus adapters do not fit the memory; asked once, before anything is written.

    Raises:
        ArtifactError: They do not, and cannot be run layer by layer either.
    """
    if fits_memory(base):
        return False
    streamed_model(base, adapters, quantization, changes)
    return True


def probe_ids(merged: Path, probes: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
    """Token ids to compare on: the probes, texts of our own where they are few, then ids at random.

    Texts are read by the merged model's tokenizer. All are cut so that their logits fit.
    """
    config = dict(model_config(merged))
    vocabulary = config.get("vocab_size") or USUAL_VOCABULARY
    chosen: list[Any] = list(probes)
    has_tokenizer = (merged / "tokenizer_config.json").is_file()
    if has_tokenizer and not _enough([probe for probe in chosen if not isinstance(probe, str)]):
        chosen += PROBE_TEXTS
    if any(isinstance(probe, str) for probe in chosen):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(merged), trust_remote_code=False)
        chosen = [tokenizer(p).input_ids if isinstance(p, str) else p for p in chosen]
    room = (context_length(config) or PROBE_TOKENS + GREEDY_TOKENS) - GREEDY_TOKENS
    longest = max(min(PROBE_TOKENS, room), 1)
    ids = [list(probe)[:longest] for probe in chosen if len(probe)]
    drawn = Random(0)
    while not _enough(ids):
        ids.append([drawn.randrange(vocabulary) for _ in range(min(DRAWN_TOKENS, longest))])
    return _within(ids, LOGITS_BYTES // (4 * vocabulary))


def _within(probes: list[list[int]], tokens: int) -> list[list[int]]:
    """The first probes, so many tokens in all."""
    kept = []
    for probe in probes:
        if tokens <= 0:
            break
        kept.append(probe[:tokens])
        tokens -= len(probe)
    return kept


def _enough(probes: Sequence[Sequence[int]]) -> bool:
    return sum(len(probe) for probe in probes) >= ENOUGH_TOKENS


def fits_memory(directory: Path, bytes_each: int = 4) -> bool:
    """Whether the model fits what is available where it would live: in float32, or in other types."""
    elements = sum(tensor.elements for tensor in read_tensors(directory).values())
    room = torch.cuda.mem_get_info()[0] if device().type == "cuda" else available_bytes()
    return bytes_each * elements < MEMORY_SHARE * room


def _reference(
    base: Path,
    adapters: Sequence[AdapterStep],
    merged: Mapping[str, Any],
    ids: list[list[int]],
    quantization: Any,
) -> tuple[Any, float | None]:
    """Base plus adapters, and the seconds that the plain base takes for a forward pass."""
    model = _base(base, merged, quantization)
    seconds = None if quantization else _seconds(model, ids)
    return _with_adapters(model, adapters), seconds


def _summed(
    base: Path, adapters: Sequence[AdapterStep], merged: Mapping[str, Any], values: str | None
) -> Any:
    """Base plus adapters in float32; `nf4` puts what 4-bit loading leaves of the base in its place."""
    model = _base(base, merged)
    for name in quantized_modules(base) if values else ():
        weight = model.get_submodule(name).weight
        weight.data = dequantized(weight.data).to(weight.device)
    return _with_adapters(model, adapters)


def _base(base: Path, merged: Mapping[str, Any], quantization: Any = None) -> Any:
    """The base in float32, with the vocabulary and the head of the merged model's config."""
    record = BaseModel(path=str(base), source=str(base), digest="")
    model: Any = load_base(record, dtype="float32", quantization=quantization).eval()
    return with_vocabulary(model, merged)


def _with_adapters(model: Any, adapters: Sequence[AdapterStep]) -> Any:
    """The adapters of the last step active, those before it merged."""
    for number, step in enumerate(adapters):
        if number:
            model = model.merge_and_unload()
        model = adapted(model, [step])
    return model.eval()


@torch.no_grad()
def logits_of(model: Any, probes: list[list[int]]) -> list[Tensor]:
    """Logits of each probe alone (no padding), [T, V] in fp32 on the CPU."""
    model.eval()
    rows = (torch.tensor([ids], device=model.device) for ids in probes)
    return [model(input_ids=row, use_cache=False).logits[0].float().cpu() for row in rows]


@torch.no_grad()
def _greedy(model: Any, probes: list[list[int]]) -> list[list[int]]:
    """The most likely continuations of the first probes."""
    continued = []
    with quiet():
        for ids in probes[:GREEDY_PROBES]:
            prompt = torch.tensor([ids], device=model.device)
            answer = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=GREEDY_TOKENS,
                pad_token_id=0,
            )
            continued.append(answer[0, len(ids) :].tolist())
    return continued


@torch.no_grad()
def _seconds(model: Any, probes: list[list[int]]) -> float:
    """Median seconds of a forward pass on the longest probe."""
    longest = torch.tensor([max(probes, key=len)], device=model.device)
    taken = []
    for _ in range(LATENCY_REPEATS + 2):  # two warm up
        begun = time.perf_counter()
        model(input_ids=longest, use_cache=False)
        if longest.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[2:])


def compare(expected: list[Tensor], actual: list[Tensor], probes: list[list[int]]) -> Figures:
    """Figures of `actual` (merged) against `expected` (base plus adapter)."""
    kl_sum, agreed, tokens, worst, finite = 0.0, 0, 0, 0.0, True
    for before, after, ids in zip(expected, actual, probes, strict=True):
        finite = finite and bool(before.isfinite().all() and after.isfinite().all())
        p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
        kl_sum += (p.exp() * (p - q)).sum().item()
        chosen = p.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)
        agreed += int((p.amax(-1) - chosen <= TIE_NATS).sum())
        tokens += len(ids)
        if len(ids) > 1:
            following = torch.tensor(ids[1:]).unsqueeze(1)
            gap = p[:-1].gather(1, following) - q[:-1].gather(1, following)
            worst = max(worst, gap.abs().max().item())
    finite = finite and math.isfinite(kl_sum) and math.isfinite(worst)
    return Figures(
        probes=len(probes),
        tokens=tokens,
        kl=max(kl_sum / max(tokens, 1), 0.0) if finite else 0.0,
        max_logp_difference=worst if finite else 0.0,
        top1_agreement=agreed / max(tokens, 1),
        finite=finite,
    )
