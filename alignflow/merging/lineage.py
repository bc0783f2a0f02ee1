"""Whether an adapter was trained on what it would be merged into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.merging.adapter import Adapter
from alignflow.merging.certificate import CERTIFICATE_FILE
from alignflow.merging.options import MergeOptions


def check_lineage(
    adapter: Adapter, base: Path, before: list[dict[str, Any]], options: MergeOptions
) -> None:
    """Refuses an adapter that was trained on something else than it would be merged into.

    Raises:
        ArtifactError: Its recorded base is another one, or, after a first adapter, is not shown
            to be the preceding result.
    """
    note = adapter.path / "base_model.json"
    recorded = json.loads(note.read_text()).get("digest") if note.is_file() else None
    known = options.base_digest
    if not before:
        if recorded and known and recorded != known:
            raise ArtifactError(
                f"The adapter in {adapter.path} was trained on a base model with digest "
                f"{recorded[:12]}, this base in {base} has {known[:12]}. Use an adapter of this "
                "base."
            )
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


def named_base(adapter: Adapter) -> Path | None:
    name = adapter.config.get("base_model_name_or_path")
    if not name:
        return None
    path = Path(name)
    return path if path.is_dir() else None
