"""Whether an adapter was trained on what it would be merged into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.files import digest_directory, digest_json
from alignflow.merging.certificate import CERTIFICATE_FILE, read_certificate
from alignflow.merging.planning.adapter import Adapter, AdapterStep, read_adapter, recorded_base
from alignflow.merging.planning.merge_plan import MergeOptions

SHA256_DIGITS = 64
"""A commit of the Hub has 40."""


def check_recorded_base(
    adapter: Adapter,
    base: Path,
    before: list[dict[str, Any]],
    options: MergeOptions,
    header_digest: str,
    arithmetic: str,
) -> None:
    """Refuses an adapter that was trained on something else than the base and the adapters before it.

    Raises:
        ArtifactError: Its recorded base is another one, or, after a first adapter, is not shown
            to be the preceding result.
    """
    if not before:
        recorded, known = recorded_base(adapter.path).get("digest"), options.base_digest
        if recorded and known:
            _demand_same(adapter.path, recorded, base, known)
        named = _named_base(adapter)
        if named and named.resolve() != base.resolve() and (named / CERTIFICATE_FILE).is_file():
            raise ArtifactError(
                f"The adapter in {adapter.path} was trained on the merged model in {named}, not on "
                f"{base}. Merge it into {named}, or name the adapters before it first (--then)."
            )
        return
    named = _named_base(adapter)
    certificate = read_certificate(named) if named else None
    if certificate is None:
        raise ArtifactError(
            f"The adapter in {adapter.path} records the base {named or 'nowhere'}, which holds no "
            f"{CERTIFICATE_FILE}, so it is not shown to be trained on the preceding result. An "
            "adapter that continues another is merged alone; else merge in two commands."
        )
    was, here = _merged(certificate.adapters), _merged(before)
    if was != here:
        raise ArtifactError(
            f"The adapter in {adapter.path} was trained on {named}, a merge of {_said(was)}; here it "
            f"would follow {_said(here)}. Give the adapters in their order, with their weights."
        )
    made = (certificate.base.get("header_digest"), certificate.arithmetic, certificate.dtype)
    dtype = certificate.dtype if options.dtype == "auto" else options.dtype
    if made != (header_digest, arithmetic, dtype):
        raise ArtifactError(
            f"The adapter in {adapter.path} was trained on {named}, merged from a base of another "
            f"shape or in another way ({certificate.arithmetic}, {certificate.dtype}; here "
            f"{arithmetic}, {dtype}). Merge in two commands."
        )


def _merged(adapters: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What the bits of a merge depend on, adapter by adapter."""
    keys = ("sha256", "config_sha256", "weight", "step")
    return [tuple(str(entry.get(key)) for key in keys) for entry in adapters]


def _said(adapters: list[tuple[str, ...]]) -> str:
    return ", ".join(f"{sha256[:12]} (weight {weight})" for sha256, _, weight, _ in adapters)


def check_read_weights(
    planned_steps: Sequence[AdapterStep], base: Path, shards: Mapping[str, str]
) -> None:
    """Refuses adapters that were trained on another base's weights than what was read.

    Called once the sha256 of each file of weights is known, so that nothing is hashed twice. One
    that records nothing, or a commit of the Hub where the base is no snapshot, is not looked at. Of
    those after the first, what counts is the base of the merge that they were trained on.

    Raises:
        ArtifactError: It was trained on another base.
    """

    @cache
    def digest() -> str:
        return digest_directory(base, shards)

    for path, _ in planned_steps[0].members if planned_steps else ():
        recorded = recorded_base(path).get("digest")
        if recorded is None or recorded == base.name or len(recorded) != SHA256_DIGITS:
            continue
        _demand_same(path, recorded, base, digest())
    for step in planned_steps[1:]:
        named = _named_base(read_adapter(step.path))
        certificate = read_certificate(named) if named else None
        known = (base.name, digest_json(dict(shards)), digest())
        if certificate is not None and certificate.base["digest"] not in known:
            raise ArtifactError(
                f"The adapter in {step.path} was trained on {named}, whose base had digest "
                f"{certificate.base['digest'][:12]}; {base} is another one. Name that base."
            )


def _demand_same(adapter: Path, recorded: str, base: Path, digest: str) -> None:
    if digest != recorded:
        raise ArtifactError(
            f"The adapter in {adapter} was trained on a base model with digest {recorded[:12]}, "
            f"this base in {base} has {digest[:12]}. Use an adapter of this base."
        )


def _named_base(adapter: Adapter) -> Path | None:
    name = adapter.config.get("base_model_name_or_path")
    return Path(name) if name and Path(name).is_dir() else None
