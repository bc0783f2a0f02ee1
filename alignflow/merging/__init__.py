"""Merging adapters into their base, streamed, with a certificate that the result is the same.

`planning` says what will be done, `writing` does it, `verifying` compares; `merge` is all three.
`plan` works from headers alone and imports no torch; `merge` loads it when it needs it.
"""

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
from alignflow.merging.request import demand_passed, merge_request

__all__ = [
    "CERTIFICATE_FILE",
    "AdapterStep",
    "Certificate",
    "Figures",
    "Limits",
    "MergeOptions",
    "MergePlan",
    "check_base",
    "demand_passed",
    "merge",
    "merge_request",
    "plan",
    "read_certificate",
    "require_certificate",
    "trained_on_nf4",
]
