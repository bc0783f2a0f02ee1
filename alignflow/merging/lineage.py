"""Whether an adapter was trained on what it would be merged into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.files import digest_directory
from alignflow.merging.adapter import Adapter, AdapterStep, recorded_base
from alignflow.merging.certificate import CERTIFICATE_FILE
from alignflow.merging.options import MergeOptions

SHA256_DIGITS = 64
"""A commit of the Hub has 40."""


def check_lineage(
    adapter: Adapter, base: Path, before: list[dict[str, Any]], options: MergeOptions
) -> None:
    """Refuses an adapter that was trained on something else than it would be merged into.

    Raises:
        ArtifactError: Its recorded base is another one, or, after a first adapter, is not shown
            to be the preceding result.
    """
    if not before:
        recorded, known = recorded_base(adapter.path).get("digest"), options.base_digest
        if recorded and known:
            _demand_same(adapter.path, recorded, base, known)
        named = named_base(adapter)
        if named and named.resolve() != base.resolve() and (named / CERTIFICATE_FILE).is_file():
            raise ArtifactError(
                f"The adapter in {adapter.path} was trained on the merged model in {named}, not on "
                f"{base}. Merge it into {named}, or name the adapters before it first (--then)."
            )
        return
    named = named_base(adapter)
    file = named / CERTIFICATE_FILE if named else None
    if file is None or not file.is_file():
        raise ArtifactError(
            f"The adapter in {adapter.path} records the base {named or 'nowhere'}, which holds no "
            f"{CERTIFICATE_FILE}, so it is not shown to be trained on the preceding result. An "
            "adapter that continues another is merged alone; else merge in two commands."
        )
    merged = [entry["sha256"] for entry in json.loads(file.read_text()).get("adapters", [])]
    if merged != [entry["sha256"] for entry in before]:
        raise ArtifactError(
            f"The adapter in {adapter.path} was trained on {named}, a merge of "
            f"{[digest[:12] for digest in merged]}; here it would follow "
            f"{[entry['sha256'][:12] for entry in before]}. Give the adapters in their order."
        )


def check_trained_on(
    planned_steps: Sequence[AdapterStep], base: Path, shards: Mapping[str, str]
) -> None:
    """Refuses adapters whose recorded base is another one than what was read.

    Called with the weights' digests once they are known, so that nothing is hashed twice. An adapter
    that records nothing, or a commit of the Hub where the base is no snapshot, is not looked at.

    Args:
        planned_steps: What was merged; those after the first are held by `check_lineage`.
        base: Directory of the base.
        shards: File name to sha256 of the weights that were read.

    Raises:
        ArtifactError: It was trained on another base.
    """
    for path, _ in planned_steps[0].members if planned_steps else ():
        recorded = recorded_base(path).get("digest")
        if recorded is None or recorded == base.name or len(recorded) != SHA256_DIGITS:
            continue
        _demand_same(path, recorded, base, digest_directory(base, shards))


def _demand_same(adapter: Path, recorded: str, base: Path, found: str) -> None:
    if found != recorded:
        raise ArtifactError(
            f"The adapter in {adapter} was trained on a base model with digest {recorded[:12]}, "
            f"this base in {base} has {found[:12]}. Use an adapter of this base."
        )


def named_base(adapter: Adapter) -> Path | None:
    name = adapter.config.get("base_model_name_or_path")
    if not name:
        return None
    path = Path(name)
    return path if path.is_dir() else None
