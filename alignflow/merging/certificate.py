"""The merge certificate: by how much the merged model differs from base plus adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from alignflow.files import atomic_write_json
from alignflow.stage import Record

CERTIFICATE_FILE = "merge_certificate.json"


class Limits(Record):
    """What a certificate may not exceed."""

    max_kl: float = 1e-3
    min_top1_agreement: float = 0.99


class Figures(Record):
    """Merged against base plus adapter, over every token of the probes."""

    probes: int
    tokens: int
    kl: float
    """Mean KL(adapter || merged), nats per token."""
    max_logp_difference: float
    """Largest difference of a log-probability of the actual next token, nats."""
    top1_agreement: float
    """Share of tokens whose most likely successor is the same."""
    finite: bool
    """Whether every logit of both is finite."""


class Certificate(Record):
    """What was merged into what, how, and how it was checked."""

    schema_version: Literal[1] = 1
    status: Literal["passed", "failed"]
    base: dict[str, Any]
    adapter: dict[str, Any] | None
    arithmetic: str
    dtype: str
    figures: Figures
    limits: Limits
    files: dict[str, dict[str, Any]]
    """sha256 and bytes of every file of the merged model, as they were when it was checked."""

    def write(self, directory: Path) -> None:
        """Puts it beside the model."""
        atomic_write_json(directory / CERTIFICATE_FILE, self.model_dump(mode="json"))


def status_of(figures: Figures, limits: Limits) -> Literal["passed", "failed"]:
    """Passed: everything finite, the KL small enough, the most likely tokens the same."""
    good = (
        figures.finite
        and figures.kl <= limits.max_kl
        and figures.top1_agreement >= limits.min_top1_agreement
    )
    return "passed" if good else "failed"


@torch.no_grad()
def logits_of(model: Any, probes: list[list[int]]) -> list[Tensor]:
    """Logits of each probe alone (no padding), [T, V] in fp32 on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    return [
        model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
        for ids in probes
    ]


def compare(expected: list[Tensor], actual: list[Tensor], probes: list[list[int]]) -> Figures:
    """Figures of `actual` (merged) against `expected` (base plus adapter)."""
    kl_sum, agreed, tokens, worst, finite = 0.0, 0, 0, 0.0, True
    for before, after, ids in zip(expected, actual, probes, strict=True):
        finite = finite and bool(before.isfinite().all() and after.isfinite().all())
        p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
        kl_sum += (p.exp() * (p - q)).sum().item()
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(ids)
        following = torch.tensor(ids[1:]).unsqueeze(1)
        if len(ids) > 1:
            gap = p[:-1].gather(1, following) - q[:-1].gather(1, following)
            worst = max(worst, gap.abs().max().item())
    return Figures(
        probes=len(probes),
        tokens=tokens,
        kl=max(kl_sum / max(tokens, 1), 0.0) if finite else 0.0,
        max_logp_difference=worst if finite else 0.0,
        top1_agreement=agreed / max(tokens, 1),
        finite=finite,
    )
