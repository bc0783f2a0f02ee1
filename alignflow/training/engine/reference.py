"""Reference log-probabilities: computed once per row, and kept across runs.

A store per reference stands in `<home>/cache/reference_logps/`; its name is the digest of the
reference, the compute type, and how log-probabilities are made. A row is found by its token ids, so
that a sweep over beta, rates or ranks computes none, and new rows are all that a retrain computes and
all that is written. What was computed before a kill is kept: SQLite's journal sees to it.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.files import digest_json

Logps = tuple[float, float]
WAIT_SECONDS = 60.0
"""For another run of the home that writes to the same store."""
_TABLE = "CREATE TABLE IF NOT EXISTS logps (row BLOB PRIMARY KEY, chosen REAL, rejected REAL) WITHOUT ROWID"


class ReferenceLogps:
    """Summed log-probabilities of the chosen and the rejected response of rows, as far as known.

    Args:
        home: Where the store is.
        identity: All that they depend on beside a row's token ids.
        rows: What they are wanted of; their positions name them from here on.
    """

    def __init__(
        self, home: Path, identity: dict[str, Any], rows: Sequence[dict[str, Any]]
    ) -> None:
        self.path = home / "cache" / "reference_logps" / f"{digest_json(identity)}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._keys = [row_key(row) for row in rows]
        self._logps = np.full((len(self._keys), 2), np.nan)
        self.computed = 0
        with self._store() as store:
            store.execute(_TABLE)
            select = "SELECT chosen, rejected FROM logps WHERE row = ?"
            for at, key in enumerate(self._keys):
                if known := store.execute(select, (key,)).fetchone():
                    self._logps[at] = known

    def missing(self) -> list[int]:
        """Positions of the rows that must be computed."""
        return np.flatnonzero(np.isnan(self._logps[:, 0])).tolist()

    def add(self, found: Iterable[tuple[int, Logps]]) -> None:
        """Keeps those of some rows, durably."""
        found = list(found)
        for at, logps in found:
            self._logps[at] = logps
        with self._store() as store:
            store.executemany(
                "INSERT OR REPLACE INTO logps VALUES (?, ?, ?)",
                [(self._keys[at], *logps) for at, logps in found],
            )
        self.computed += len(found)

    def of(self, at: int) -> Logps:
        """Those of a row that is known."""
        chosen, rejected = self._logps[at].tolist()
        return chosen, rejected

    @contextmanager
    def _store(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS)) as store, store:
            yield store


def row_key(row: dict[str, Any]) -> bytes:
    """Digest of a pair's token ids."""
    digest = blake2b(digest_size=16)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        ids = array("q", row[name])
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids.tobytes())
    return digest.digest()
