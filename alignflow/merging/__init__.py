"""Merging adapters into their base, streamed, with a certificate that the result is the same.

`planning` says what will be done, `writing` does it, `verifying` compares; `merge` is all three.
`plan` works from headers alone and imports no torch; `merge` and `verify` load it when they need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignflow.merging.certificate import (
    CERTIFICATE_FILE,
    Certificate,
    Figures,
    Limits,
    read_certificate,
    require_certificate,
)
from alignflow.merging.certified_merge import merge
from alignflow.merging.planning.adapter import AdapterStep, trained_on_nf4
from alignflow.merging.planning.merge_plan import MergeOptions, MergePlan
from alignflow.merging.planning.plan import check_base, plan
from alignflow.merging.request import MergeRequest, demand_passed, merge_request

if TYPE_CHECKING:
    from alignflow.merging.verifying.comparison import verify

__all__ = [
    "CERTIFICATE_FILE",
    "AdapterStep",
    "Certificate",
    "Figures",
    "Limits",
    "MergeOptions",
    "MergePlan",
    "MergeRequest",
    "check_base",
    "demand_passed",
    "merge",
    "merge_request",
    "plan",
    "read_certificate",
    "require_certificate",
    "trained_on_nf4",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "verify":
        from alignflow.merging.verifying.comparison import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
