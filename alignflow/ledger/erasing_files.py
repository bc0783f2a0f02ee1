"""Removing texts from the files of a home: reports, prepared data, work in progress, the inbox.

In Parquet, in Arrow shards and in the inbox the row goes, its token ids with it; elsewhere the text is replaced. A
finished artifact gets a manifest that says what its files are now, so it still verifies.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from alignflow.data import prompt_of, response_of, separator_of
from alignflow.errors import StageError
from alignflow.files import atomic_write_bytes
from alignflow.ledger.snapshot_files import renamed
from alignflow.stages import MANIFEST_FILE, recertify

if TYPE_CHECKING:
    import pyarrow as pa

ERASED = "[erased]"
SWEEPS = 20
SHORTEST_SEARCHED = 12
"""Shorter texts are erased where they stand alone, not as parts of others."""
INBOX = "inbox"
FOLDERS = ("runs", "artifacts", "work", "cache", "mlartifacts", INBOX)
WEIGHTS = {"model", "adapter", "tokenizer", "checkpoints"}
TEXT_SUFFIXES = (".json", ".jsonl", ".html", ".txt", ".md", ".log")
TABLE_SUFFIXES = (".csv", ".tsv")


class Words(NamedTuple):
    """Texts to look for."""

    whole: frozenset[str]
    """Erased where a string is exactly this."""
    parts: tuple[str, ...]
    """Erased wherever they stand, longest first."""

    def holds(self, value: Any) -> bool:
        """Whether one of them is anywhere in a value of JSON."""
        if isinstance(value, dict):
            return self.holds(list(cast("dict[str, Any]", value).values()))
        if isinstance(value, list):
            return any(self.holds(item) for item in cast("list[Any]", value))
        return isinstance(value, str) and (
            value in self.whole or any(part in value for part in self.parts)
        )

    def cleaned(self, value: Any) -> Any:
        """The value with each of them replaced."""
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {name: self.cleaned(item) for name, item in fields.items()}
        if isinstance(value, list):
            return [self.cleaned(item) for item in cast("list[Any]", value)]
        if not isinstance(value, str):
            return value
        if value in self.whole:
            return ERASED
        for part in self.parts:
            value = value.replace(part, ERASED)
        return value

    def cleaned_page(self, page: str) -> str:
        """Text or HTML with each of them replaced."""
        for part in self.parts:
            for form in {part, html.escape(part), html.escape(part, quote=False), _in_page(part)}:
                page = page.replace(form, ERASED)
        for word in self.whole - set(self.parts):
            page = page.replace(f">{_in_page(word)}<", f">{ERASED}<")
        return page


def _in_page(text: str) -> str:
    """A text as templates of our pages escape it."""
    return html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def words_of(written: Iterable[tuple[str, str, str]]) -> Words:
    """The texts of rows: what was asked, in each turn, and both responses."""
    words: set[str] = set()
    for prompt, chosen, rejected in written:
        turns = [*prompt_of(prompt)[0], response_of(chosen), response_of(rejected)]
        words |= {word for turn in turns for word in _words_in(turn)}
    parts = sorted(
        (word for word in words if len(word) >= SHORTEST_SEARCHED), key=len, reverse=True
    )
    return Words(frozenset(words), tuple(parts))


def _words_in(turn: dict[str, Any]) -> Iterator[str]:
    """The texts of a turn, as they are and as JSON writes them."""
    told = [value for name, value in turn.items() if name not in ("role", "name", "tool_calls")]
    told += [call["function"]["arguments"] for call in turn.get("tool_calls", ())]
    for text in _texts_in(told):
        yield text
        yield json.dumps(text, ensure_ascii=False)[1:-1]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        told = cast("dict[str, Any] | list[Any]", value)
        for entry in told.values() if isinstance(told, dict) else told:
            yield from _texts_in(entry)


def erase_from_files(home: Path, words: Words) -> list[str]:
    """Removes texts from every file of a home that may hold some; returns those it changed."""
    if not words.whole:
        return []
    changed: set[Path] = set()
    for _ in range(SWEEPS):
        if _swept(home, words, changed):
            break
    else:
        raise StageError(
            f"{home}: files were moved again and again while texts were erased from them. Nothing is "
            "lost; repeat the command once the runs of this home are done."
        )
    for directory in {artifact for path in changed if (artifact := _artifact_of(home, path))}:
        recertify(directory)
    return sorted(map(str, changed))


def _swept(home: Path, words: Words, changed: set[Path]) -> bool:
    """Adds the files that were changed; whether all were seen.

    One that a run publishes or takes in meanwhile has moved, maybe to where this pass has been.
    """
    try:
        for path in _files(home):
            if _erase_from(path, words, drop=path.is_relative_to(home / INBOX)):
                changed.add(path)
    except FileNotFoundError:
        return False
    return True


def _files(home: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((home / folder).rglob("*")):
            parts = path.relative_to(home / folder).parts
            if not WEIGHTS.intersection(parts) and path.is_file() and not path.is_symlink():
                yield path


def _artifact_of(home: Path, path: Path) -> Path | None:
    """The finished artifact that a file belongs to."""
    if not path.is_relative_to(home / "artifacts"):
        return None
    stage, key, *_ = path.relative_to(home / "artifacts").parts
    directory = home / "artifacts" / stage / key
    return directory if (directory / MANIFEST_FILE).exists() else None


def _erase_from(path: Path, words: Words, *, drop: bool) -> bool:
    """Removes the texts from one file; whether it held any."""
    if path.suffix in (".parquet", ".arrow"):
        return keep_rows(path, lambda fields: not words.holds(list(fields.values())))
    packed = path.name.endswith(".jsonl.gz")
    if path.name.endswith(TABLE_SUFFIXES):
        return _erase_from_table(path, words, drop)
    if not packed and not path.name.endswith(TEXT_SUFFIXES):
        return False
    before = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    lines = packed or path.suffix == ".jsonl"
    after = _lines(before, words, drop) if lines else _document(before, words)
    if after != before:
        atomic_write_bytes(path, gzip.compress(after, mtime=0) if packed else after)
    return after != before


def _erase_from_table(path: Path, words: Words, drop: bool) -> bool:
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    separator = separator_of(path, text)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    after = [words.cleaned(row) for row in rows if not (drop and words.holds(row))]
    if after == rows:
        return False
    table = io.StringIO(newline="")
    csv.writer(table, delimiter=separator, lineterminator="\n").writerows(after)
    atomic_write_bytes(path, table.getvalue().encode("utf-8", "surrogateescape"))
    return True


def _document(content: bytes, words: Words) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    try:
        value = json.loads(text)
    except ValueError:
        return words.cleaned_page(text).encode("utf-8", "surrogateescape")
    if not words.holds(value):
        return content
    return (json.dumps(words.cleaned(value), indent=2) + "\n").encode()


def _lines(content: bytes, words: Words, drop: bool) -> bytes:
    kept: list[bytes] = []
    for line in content.splitlines(keepends=True):
        text = line.decode("utf-8", "surrogateescape")
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text  # torn, or not JSON: what it holds stands there as it is
        if not words.holds(value):
            kept.append(line)
        elif not drop:
            kept.append(json.dumps(words.cleaned(value)).encode() + b"\n")
    return b"".join(kept)


def keep_rows(
    path: Path, is_kept: Callable[[dict[str, Any]], bool], columns: list[str] | None = None
) -> bool:
    """Rewrites a Parquet file or an Arrow stream without some rows; False where it has none of them.

    `is_kept` says of a row's `columns`, or of all, whether it stays.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches(of: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        if path.suffix == ".parquet":
            yield from pq.ParquetFile(path).iter_batches(columns=of)
        else:
            for batch in pa.ipc.open_stream(pa.memory_map(str(path))):
                yield batch.select(of) if of else batch

    kept = [[is_kept(fields) for fields in batch.to_pylist()] for batch in batches(columns)]
    if all(all(batch) for batch in kept):
        return False
    schema = next(batches()).schema
    with renamed(path) as temporary, _writer(path, temporary, schema) as new:
        for batch, mask in zip(batches(), kept, strict=True):
            new.write_batch(batch.filter(pa.array(mask, pa.bool_())))
    return True


def _writer(path: Path, temporary: Path, schema: pa.Schema) -> Any:
    """What writes batches in the format of `path` to another file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.ParquetWriter(temporary, schema, compression="zstd")
    return pa.ipc.new_stream(str(temporary), schema)
