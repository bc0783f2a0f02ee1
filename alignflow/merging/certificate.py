"""The merge certificate: what was merged into what, and by how much the result differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from alignflow.errors import CertificateError
from alignflow.files import atomic_write_json
from alignflow.stages import Record

CERTIFICATE_FILE = "merge_certificate.json"
Status = Literal["passed", "failed", "unverified"]


class Limits(Record):
    """What a certificate may not exceed."""

    max_kl: float = 0.05
    """Nats per token, of merged against base plus adapter."""


class Weights(Record):
    """Each written tensor beside base plus adapter, which PEFT adds up in float32."""

    equal: int
    """Tensors of which every value is the sum, rounded once."""
    wrong_count: int = 0
    wrong: list[str] = Field(default_factory=list)
    """The first tensors with another value."""
    unknown: list[str] = Field(default_factory=list)
    """The first that could not be added up here; the logits stand for them."""


class Figures(Record):
    """Merged against base plus adapter, over every token of the probes."""

    probes: int
    tokens: int
    kl: float
    """Mean KL(adapter || merged), nats per token."""
    max_logp_difference: float
    """Largest difference of a log-probability of the actual next token, nats."""
    top1_agreement: float
    """Share of tokens whose most likely successor is the same, or as likely to 0.05 nats. It decides
    nothing."""
    finite: bool
    """Whether every logit of both is finite."""
    greedy_agreement: float | None = None
    """Share of probes whose greedy continuations are the same; None where not generated."""
    latency_ratio: float | None = None
    """Seconds of a forward pass of merged over plain base; None where not timed."""
    streamed: bool = False
    """Whether the models were run layer by layer from the disk."""
    weights: Weights | None = None


class Certificate(Record):
    """What was merged into what, how, and how it was checked."""

    schema_version: Literal[3] = 3
    status: Status
    base: dict[str, Any]
    adapters: list[dict[str, Any]]
    """Path, sha256, weight and step of each, in order."""
    arithmetic: str
    dtype: str
    finite: bool
    """Whether every merged weight is finite."""
    figures: Figures | None
    limits: Limits
    files: dict[str, dict[str, Any]]
    """sha256 and bytes of every file of the merged model, as they were when it was checked."""
    plan: str
    """Digest of the plan: the same plan gives the same bytes."""
    notes: list[str] = Field(default_factory=list)
    serve: dict[str, str] = Field(default_factory=dict)
    """Command lines of vLLM for the merged model, and for base plus adapter."""

    def in_words(self) -> str:
        """What the comparison said."""
        if self.figures is None or not (self.figures.finite and self.finite):
            return "a weight or a logit is not finite"
        weights = self.figures.weights
        if weights is not None and weights.wrong_count:
            return (
                f"{weights.wrong_count} of {weights.wrong_count + weights.equal} tensors are not base "
                f"plus adapter, rounded once, such as {', '.join(weights.wrong[:3])}"
            )
        return (
            f"KL {self.figures.kl:.3g} nats per token (limit {self.limits.max_kl:g}) over "
            f"{self.figures.tokens} tokens, most likely token equal in "
            f"{self.figures.top1_agreement:.2%}, largest difference of a log-probability "
            f"{self.figures.max_logp_difference:.3g}"
        )

    def write(self, directory: Path) -> None:
        """Puts it beside the model."""
        atomic_write_json(directory / CERTIFICATE_FILE, self.model_dump(mode="json"))


def read_certificate(directory: Path) -> Certificate | None:
    """The certificate beside a model; None where there is none of this version."""
    try:
        return Certificate.model_validate_json((directory / CERTIFICATE_FILE).read_text())
    except (OSError, ValueError):
        return None


def status_of(finite: bool, figures: Figures | None, limits: Limits) -> Status:
    """Passed: every weight and logit finite, every tensor base plus adapter, the KL small enough.

    Unverified: the weights are finite, and the logits were not compared (no figures).
    """
    if finite and figures is None:
        return "unverified"
    good = (
        finite
        and figures
        and figures.finite
        and figures.kl <= limits.max_kl
        and not (figures.weights and figures.weights.wrong_count)
    )
    return "passed" if good else "failed"


def require_certificate(model: Path) -> dict[str, Any]:
    """The merge certificate of a merged model.

    Raises:
        CertificateError: There is none, or it did not pass.
    """
    path = model / CERTIFICATE_FILE
    try:
        certificate = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"{path} is not there or damaged, so the merged model is not registered. "
            "Run the recipe again; the merge stage writes it."
        ) from error
    if certificate.get("status") != "passed":
        raise CertificateError(
            f"{path}: the certificate did not pass, so the merged model is not registered."
        )
    return certificate
