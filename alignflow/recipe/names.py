"""What kind of source a name in a recipe is, and the files it stands for."""

from __future__ import annotations

import glob
from pathlib import Path

from alignflow.errors import DataError

DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv")


def is_builtin(source: str) -> bool:
    """Whether the source ships with the package."""
    return source.startswith("builtin:")


def is_ledger(source: str) -> bool:
    """Whether the source is a preference set of the home's ledger: `ledger:NAME[@SNAPSHOT]`."""
    return source.startswith("ledger:")


def is_gguf(source: str) -> bool:
    """Whether the source is a model in a GGUF file: `gguf:PATH`."""
    return source.startswith("gguf:")


def is_hub_id(source: str) -> bool:
    """Whether the source can only be a Hub id: `name` or `owner/name`, and no file of that name."""
    return (
        not is_builtin(source)
        and not is_ledger(source)
        and not is_gguf(source)
        and not source.startswith((".", "/", "~"))
        and source.count("/") <= 1
        and not any(character in source for character in "*?[")
        and not source.endswith(DATA_SUFFIXES)
        and not Path(source).exists()
    )


def matching_files(source: str) -> list[Path]:
    """Absolute paths of the files a file name or glob stands for, sorted.

    Raises:
        DataError: There is none.
    """
    pattern = str(Path(source).expanduser().absolute())
    matches = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [path for path in matches if path.is_file()]
    if not files:
        raise DataError(
            f"{source}: no such file (looked for {pattern}). Paths are relative to the working "
            "directory; check the name."
        )
    return files
