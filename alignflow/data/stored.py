"""Rows of a `prepare` artifact: Arrow streams, a shard per stretch of a source, mapped into memory.

`datasets.Dataset.from_file` opens a shard, and `load_dataset("arrow", data_files=...)` all of them.
No torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Row = dict[str, Any]
Item = TypeVar("Item")
SHARD = "{:05}.arrow"
BATCH_ROWS = 1000


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """The types of columns of ours, by their names."""
    import pyarrow as pa

    def kind(name: str) -> pa.DataType:
        if name.endswith("_ids"):
            return pa.list_(pa.int32())
        plain = {"completion_mask": pa.list_(pa.int8()), "label": pa.bool_()}
        return plain.get(name, pa.int32() if name == "responses" else pa.string())

    return pa.schema([(name, kind(name)) for name in columns])


def write_shard(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Writes rows of these columns: equal rows, equal bytes."""
    import pyarrow as pa

    schema = schema_of(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for start in range(0, len(rows), BATCH_ROWS):
            batch = pa.RecordBatch.from_pylist(rows[start : start + BATCH_ROWS], schema=schema)
            stream.write_batch(batch)


def read_judged(path: Path) -> list[Row]:
    """Rows of a part that models are measured with; none where there is no such file."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist() if path.is_file() else []


class View(Sequence[Item], Generic[Item]):
    """Items that are made when they are asked for."""

    def __init__(self, count: int, item: Callable[[int], Item]) -> None:
        self._count, self._item = count, item

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | Sequence[Item]:
        if isinstance(at, slice):
            places = range(self._count)[at]
            return View(len(places), lambda number: self._item(places[number]))
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._item(at % self._count)


def joined_rows(one: Sequence[Item], two: Sequence[Item]) -> Sequence[Item]:
    """The rows of one, then those of the other."""
    count = len(one)
    return View(count + len(two), lambda at: one[at] if at < count else two[at - count])


class StoredRows(View[Row]):
    """Rows of a folder of shards, in their order. None of them is kept in memory."""

    def __init__(self, batches: Sequence[pa.RecordBatch], places: np.ndarray | None = None) -> None:
        self._batches = batches
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        self._places = places
        whole = self._ends[-1] if self._ends else 0
        super().__init__(whole if places is None else len(places), self._row)

    @classmethod
    def of(cls, folder: Path) -> StoredRows:
        """Those of a folder; there are none where it is not there."""
        import pyarrow as pa

        batches: list[pa.RecordBatch] = []
        for path in sorted(folder.glob("*.arrow")):
            batches += pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches()
        return cls(batches)

    def _row(self, at: int) -> Row:
        place = at if self._places is None else int(self._places[at])
        number = bisect_right(self._ends, place)
        batch = self._batches[number]
        return batch.slice(place - self._ends[number] + batch.num_rows, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[Row]:
        if self._places is not None:
            yield from (self._row(at) for at in range(len(self)))
            return
        for batch in self._batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from batch.slice(start, BATCH_ROWS).to_pylist()

    def lengths(self, column: str) -> np.ndarray:
        """Entries of a column of lists, of each row."""
        import numpy as np
        from pyarrow.compute import call_function

        columns = [batch.column(column) for batch in self._batches]
        counts = [call_function("list_value_length", [lists]) for lists in columns]
        whole = np.concatenate([np.zeros(0, np.int64), *(one.to_numpy() for one in counts)])
        return whole.astype(np.int64) if self._places is None else whole[self._places]

    def chosen(self, places: np.ndarray) -> StoredRows:
        """The rows at these places, of all."""
        return StoredRows(self._batches, places if self._places is None else self._places[places])
