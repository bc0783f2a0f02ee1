"""What kind of source a name in a recipe is, and the files it stands for."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import Any, cast

from alignflow.errors import DataError

DATA_SUFFIXES = (
    *(".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow"),
    *(".csv", ".tsv", ".txt"),
)
SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` of datasets writes beside rows: of several splits, of one."""
SPLITS = {
    "train": ("train", "training"),
    "test": ("test",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
}
"""Splits, and what files and rows call them."""
_POINTER = re.compile(r"(.*dataset_info\.json):([^:/]+)")


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
        and pointed(source) is None
        and not Path(source).exists()
    )


def pointed(source: str) -> tuple[Path, str] | None:
    """File and name of `path/dataset_info.json:NAME`, as LLaMA-Factory lists data; None of other names."""
    match = _POINTER.fullmatch(source)
    return (Path(match[1]).expanduser().absolute(), match[2]) if match else None


def pointed_entry(file: Path, name: str) -> dict[str, Any]:
    """What a `dataset_info.json` says of a data set.

    Raises:
        DataError: It cannot be read, has no such entry, or names no file here.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Check the name.") from error
    known = _object(entries)
    if name not in known:
        names = ", ".join(known) or "none"
        raise DataError(f"{file}: has no data set {name!r} (it has: {names}). Correct the name.")
    entry = _object(known[name])
    if not isinstance(entry.get("file_name"), str):
        raise DataError(
            f"{file}: {name!r} names no file here (it has: {', '.join(entry)}). Give the data set itself "
            "as the source."
        )
    return entry


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def matching_files(source: str, split: str = "train") -> list[Path]:
    """Absolute paths of the files a name stands for, sorted: a file, a glob, or a folder of files.

    A folder that `save_to_disk` wrote stands for its rows, and where files are named for splits, for
    those of `split`. What `dataset_info.json:NAME` points at begins with that file.

    Raises:
        DataError: There is none.
    """
    if pointer := pointed(source):
        entry = pointed_entry(*pointer)
        return [pointer[0], *matching_files(str(pointer[0].parent / entry["file_name"]), split)]
    pattern = str(Path(source).expanduser().absolute())
    matches = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    folders = [path for path in matches if path.is_dir()] if len(matches) == 1 else []
    files = [path for path in matches if path.is_file()]
    files += [file for folder in folders for file in _files_in(folder, split)]
    if not files:
        what = "has no rows" if folders else "no such file"
        raise DataError(
            f"{source}: {what} (looked for {pattern}; files of rows end in "
            f"{', '.join(DATA_SUFFIXES)}). Paths are relative to the working directory; check the name."
        )
    return files


def _files_in(folder: Path, split: str) -> list[Path]:
    """The files of rows in a folder."""
    if (folder / SAVED[0]).is_file():
        return _files_in(folder / split, split) if (folder / split).is_dir() else []
    if (folder / SAVED[1]).is_file():
        return sorted(folder.glob("*.arrow"))
    inside = [path for path in sorted(folder.rglob("*")) if path.name.endswith(DATA_SUFFIXES)]
    files = [
        path
        for path in inside
        if path.is_file()
        and not path.name.startswith("dataset_info")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    named = [path for path in files if _split_of(path) is not None]
    return [path for path in named if _split_of(path) == _known_split(split)] or files


def _split_of(path: Path) -> str | None:
    """The split that a file is named for, such as `train-00000-of-00002.parquet`."""
    return _known_split(re.split(r"[-_.]", path.name)[0])


def _known_split(name: str) -> str | None:
    return next((split for split, names in SPLITS.items() if name in names), None)
