"""Resolving a data source to what `prepare` reads: its digest, and where it is. No torch."""

from __future__ import annotations

from pathlib import Path

from alignflow.errors import RecipeError
from alignflow.files import digest_json, sha256_file
from alignflow.recipe import DataSource
from alignflow.recipe.names import is_builtin, is_hub_id, is_ledger, matching_files
from alignflow.recipe.resolve import Resolved, hub_commit


def resolve_data_source(source: DataSource, home: Path, seed: int) -> Resolved:
    """Digest of a data source's content; a Hub dataset's is its commit.

    Raises:
        RecipeError: No builtin data set has that name.
        DataError: No file matches, or the ledger has no such set or snapshot.
    """
    if is_builtin(source.source):
        from alignflow.builtin import rows

        try:
            content = rows(source.source.removeprefix("builtin:"), seed)
        except KeyError as error:
            raise RecipeError(f"data: {error.args[0]}.") from error
        return Resolved(digest_json(content), None)
    if is_ledger(source.source):
        from alignflow.ledger import training_rows

        name, _, snapshot = source.source.removeprefix("ledger:").partition("@")
        path = training_rows(home, name, snapshot or None)
        return Resolved(sha256_file(path), str(path))
    if is_hub_id(source.source):
        return Resolved(hub_commit(source.source, source.revision, "dataset"), None)
    files = matching_files(source.source)
    return Resolved(digest_json([sha256_file(path) for path in files]), None)
