"""Merging adapters into their base, streamed, with a certificate that the result is the same.

`plan` works from headers alone and imports no torch; `merge` and `verify` load when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignflow.merging.adapter import AdapterStep
from alignflow.merging.certificate import CERTIFICATE_FILE, Certificate, Figures, Limits
from alignflow.merging.merge import merge
from alignflow.merging.merge_plan import MergePlan
from alignflow.merging.options import MergeOptions
from alignflow.merging.planning import plan

if TYPE_CHECKING:
    from alignflow.merging.verifying import verify

__all__ = [
    "CERTIFICATE_FILE",
    "AdapterStep",
    "Certificate",
    "Figures",
    "Limits",
    "MergeOptions",
    "MergePlan",
    "merge",
    "plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "verify":
        from alignflow.merging.verifying import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
