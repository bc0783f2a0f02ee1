"""The Parquet files of snapshots: what training reads. The ledger can write each again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from alignflow.data import prompt_of, response_of
from alignflow.faults import faultpoint
from alignflow.files import fsync_directory, fsync_file

WRITTEN_ROWS = 5000
WAITING = "waiting-"
WAITING_SECONDS = 7 * 86_400
"""How long the rows that waited once are kept for a run that reads them."""


def snapshot_folder(home: Path, name: str) -> Path:
    """Where the Parquet files of a set are."""
    return home / "snapshots" / name


def write_parquet(path: Path, read: Callable[[], Iterable[Any]]) -> None:
    """Writes rows as Parquet under another name, and renames: equal rows, equal bytes.

    Columns are messages of role and content; where a row has calls of tools or reasoning, texts of
    the JSON of messages, with a column `tools`.
    """
    try:
        _write(path, read(), is_plain=True)
    except _MoreThanText:
        _write(path, read(), is_plain=False)


class _MoreThanText(Exception):
    """A row has what the plain columns cannot hold."""


def _write(path: Path, entries: Iterable[Any], *, is_plain: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    message = pa.list_(pa.struct([("role", text), ("content", text)])) if is_plain else text
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("prompt", message),
            ("chosen", message),
            ("rejected", message),
            ("replayed", pa.bool_()),
            *(() if is_plain else [("tools", pa.string())]),
        ]
    )
    columns = _columns if is_plain else _full_columns
    remaining = iter(entries)
    with (
        renamed(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as file,
    ):
        while part := [columns(entry) for entry in islice(remaining, WRITTEN_ROWS)]:
            file.write_table(pa.Table.from_pylist(part, schema))
        faultpoint("ledger.snapshot.written")
    faultpoint("ledger.snapshot.renamed")


@contextmanager
def renamed(path: Path) -> Generator[Path]:
    """Another name to write a file under, which then takes the place of `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    yield temporary
    fsync_file(temporary)
    os.replace(temporary, path)
    fsync_directory(path.parent)


def _columns(entry: Any) -> dict[str, Any]:
    name, prompt, chosen, rejected, replayed = entry
    messages, tools = prompt_of(prompt)
    answers = (response_of(chosen), response_of(rejected))
    if tools is not None or any({*turn} != _PLAIN for turn in (*messages, *answers)):
        raise _MoreThanText
    return {
        "id": bytes(name).hex(),
        "prompt": messages,
        "chosen": [answers[0]],
        "rejected": [answers[1]],
        "replayed": bool(replayed),
    }


_PLAIN = {"role", "content"}


def _full_columns(entry: Any) -> dict[str, Any]:
    name, prompt, chosen, rejected, replayed = entry
    messages, tools = prompt_of(prompt)
    told = {
        "prompt": messages,
        "chosen": [response_of(chosen)],
        "rejected": [response_of(rejected)],
        **({} if tools is None else {"tools": tools}),
    }
    written = {column: json.dumps(value, ensure_ascii=False) for column, value in told.items()}
    return {"id": bytes(name).hex(), "replayed": bool(replayed), **written}


def drop_old_waiting(folder: Path) -> None:
    """Deletes what waited once and was not asked for in a week: any of it can be written again."""
    for path in folder.glob(f"{WAITING}*.parquet"):
        with suppress(FileNotFoundError):  # another run drops them too
            if time.time() - path.stat().st_mtime > WAITING_SECONDS:
                path.unlink()


def described(path: Path) -> tuple[str, int]:
    """Digest of the rows, as the file's name has it, and their number."""
    import pyarrow.parquet as pq

    return path.stem.rpartition("-")[2], pq.read_metadata(path).num_rows
