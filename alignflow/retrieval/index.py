"""Stage `index`: documents become passages in an index that finds them by their words.

    documents -> passages -> SQLite's FTS5, and vectors where the recipe wants them

Equal documents make equal bytes, so that nothing after it runs again.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from alignflow.errors import DataError
from alignflow.files import atomic_write_json, read_json_lines, write_json_lines
from alignflow.recipe import DataSource, RetrievalSection
from alignflow.retrieval.chunks import Chunk, chunks_of
from alignflow.retrieval.documents import Document, documents_of
from alignflow.retrieval.grounding import SETTINGS_FILE
from alignflow.retrieval.searching import INDEX_FILE, VECTORS_FILE, embedder_of
from alignflow.stages import EventWriter, RowAccount, StageParams, StageResult, StageSpec

DOCUMENTS_FILE, CHUNKS_FILE = "documents.jsonl", "chunks.jsonl"
VECTORED = ("hybrid", "embeddings")


class IndexParams(StageParams):
    """Of stage `index`."""

    retrieval: RetrievalSection
    documents: list[DataSource]
    changed: list[DataSource] = Field(default_factory=list)
    """Documents that take the place of those of their names."""
    sources: dict[str, str]
    """Digest of each source's documents."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        DataError: There are no documents, or one cannot be read.
    """
    params, output = IndexParams.of(spec), work / "output"
    documents = in_force(_read(spec, params.documents), _read(spec, params.changed))
    section = params.retrieval
    chunks = [
        chunk
        for document in documents
        for chunk in chunks_of(document, section.chunk_words, section.overlap_words)
    ]
    write_json_lines(output / DOCUMENTS_FILE, (document._asdict() for document in documents))
    write_json_lines(output / CHUNKS_FILE, (chunk.model_dump() for chunk in chunks))
    write_index(output / INDEX_FILE, chunks)
    atomic_write_json(output / SETTINGS_FILE, section.model_dump(mode="json"))
    if section.by in VECTORED:
        vectors = embedder_of(section)([chunk.shown for chunk in chunks])
        np.save(output / VECTORS_FILE, vectors)
    events.message(f"{len(documents)} documents, {len(chunks)} passages")
    return StageResult(
        metrics={"documents": float(len(documents)), "passages": float(len(chunks))},
        rows=RowAccount(read=len(documents), trained=len(documents)),
    )


def _read(spec: StageSpec, sources: Sequence[DataSource]) -> list[Document]:
    return [
        document
        for source in sources
        for document in documents_of(source, seed=spec.seed, path=spec.paths.get(source.source))
    ]


def in_force(documents: Sequence[Document], changed: Sequence[Document]) -> list[Document]:
    """Documents, those of a changed name in their new text.

    Raises:
        DataError: Two documents have one name.
    """
    for given in (documents, changed):
        counts = Counter(document.name for document in given)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise DataError(
                f"two documents are called {twice!r}. Give rows a `name` of their own, and folders "
                "whose files differ in their names."
            )
    by_name = {document.name: document for document in (*documents, *changed)}
    return list(by_name.values())


def write_index(path: Path, chunks: Sequence[Chunk]) -> None:
    """Writes the passages and their words into a new SQLite file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    try:
        connection.execute(
            "CREATE TABLE chunks (number INTEGER PRIMARY KEY, id TEXT, document TEXT, shown TEXT)"
        )
        connection.execute(
            "CREATE VIRTUAL TABLE words USING fts5(shown, content='chunks', "
            "content_rowid='number', tokenize='porter unicode61 remove_diacritics 2')"
        )
        rows = [(n, c.id, c.document, c.shown) for n, c in enumerate(chunks, 1)]
        connection.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO words (words) VALUES ('rebuild')")
        connection.commit()
    finally:
        connection.close()


def read_chunks(index: Path) -> list[Chunk]:
    """The passages of an index artifact."""
    return [Chunk.model_validate(row) for row in read_json_lines(index / CHUNKS_FILE)]


def read_documents(index: Path) -> list[Document]:
    """The documents of an index artifact."""
    return [Document(**row) for row in read_json_lines(index / DOCUMENTS_FILE)]
