"""Reference log-probabilities: computed once per row, and kept across runs.

A file per reference stands in `<home>/cache/reference_logps/`; its name is the digest of the
reference, the compute type, and how log-probabilities are made. A row is found by its token ids, so
that a sweep over beta, rates or ranks computes none, and new rows are all that a retrain computes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from alignflow.files import digest_json, read_certified, write_certified

Logps = tuple[float, float]


class ReferenceCache:
    """Summed log-probabilities of (chosen, rejected) by row."""

    def __init__(self, home: Path, identity: dict[str, Any]) -> None:
        self.path = home / "cache" / "reference_logps" / f"{digest_json(identity)}.json"
        rows = read_certified(self.path) or {}
        self._known: dict[str, Logps] = {key: tuple(logps) for key, logps in rows.items()}
        self.computed = 0

    def missing(self, rows: list[dict[str, Any]]) -> list[int]:
        """Positions of the rows that must be computed."""
        return [at for at, row in enumerate(rows) if row_key(row) not in self._known]

    def add(self, row: dict[str, Any], logps: Logps) -> None:
        self._known[row_key(row)] = logps
        self.computed += 1

    def of(self, row: dict[str, Any]) -> Logps:
        """The log-probabilities of a row that is known."""
        return self._known[row_key(row)]

    def save(self) -> None:
        if self.computed:
            write_certified(self.path, dict(sorted(self._known.items())))


def row_key(row: dict[str, Any]) -> str:
    """Digest of a pair's token ids."""
    ids = [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
    return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()
