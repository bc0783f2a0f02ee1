"""Finding passages for a question: by words, by words and vectors, by an endpoint, by your own."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignflow.errors import EvaluationError, RecipeError
from alignflow.models import ask_endpoint
from alignflow.recipe import RetrievalSection, load_function
from alignflow.stages import Record

INDEX_FILE, VECTORS_FILE = "index.db", "vectors.npy"
RANK_OFFSET = 60
"""Of reciprocal rank fusion (Cormack 2009)."""
CANDIDATES = 4
"""Passages that each ranking gives to the fusion, for each that is wanted."""
TEXTS_PER_REQUEST = 64
TIMEOUT_SECONDS = 60.0
_WORD = re.compile(r"\w+")


class Passage(Record):
    """What was found."""

    id: str
    document: str
    text: str
    score: float | None = None
    """The higher the better, within one search."""


Retriever = Callable[[str, int], list[Passage]]
"""From a question and the number of passages wanted to those found, the best first."""
Embedder = Callable[[Sequence[str]], np.ndarray]


def retriever_of(index: Path, section: RetrievalSection) -> Retriever:
    """What finds passages in an index as the recipe says.

    Raises:
        RecipeError: A function or a package is not there.
    """
    if ":" in section.by:
        return _own(section.by)
    by_words = words_retriever(index / INDEX_FILE)
    if section.by == "words":
        return by_words
    by_vectors = _vectors_retriever(index, embedder_of(section))
    return by_vectors if section.by == "embeddings" else _fused(by_words, by_vectors)


def match_query(question: str) -> str:
    """FTS5's query for any of a question's words, whatever else stands in it; empty for none."""
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(_WORD.findall(question.lower())))


def words_retriever(database: Path) -> Retriever:
    """By BM25; passages of equal rank in the order of the documents."""
    connection = sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)

    def search(question: str, count: int) -> list[Passage]:
        query = match_query(question)
        if not query:
            return []
        rows = connection.execute(
            "SELECT chunks.id, chunks.document, chunks.shown, -bm25(words) FROM words "
            "JOIN chunks ON chunks.number = words.rowid "
            "WHERE words MATCH ? ORDER BY bm25(words), words.rowid LIMIT ?",
            (query, count),
        ).fetchall()
        return [Passage(id=i, document=d, text=t, score=s) for i, d, t, s in rows]

    return search


def embedder_of(section: RetrievalSection) -> Embedder:
    """What makes vectors of texts, each of length 1.

    Raises:
        RecipeError: wordllama is not installed.
    """
    if section.by == "embeddings":
        return lambda texts: _unit(_from_endpoint(section, texts))
    found = importlib.util.find_spec("wordllama")
    if found is None or found.origin is None:
        raise RecipeError(
            "decide.retrieval.by is hybrid, whose vectors come with the package wordllama, which is "
            "not installed. `pip install 'alignflow[vectors]'`, or use `by: words`."
        )
    loader: Any = importlib.import_module("wordllama").WordLlama
    # its own search for the files that it ships looks in another folder, and then downloads
    model = loader.load(cache_dir=Path(found.origin).parent, disable_download=True)
    return lambda texts: _unit(model.embed(list(texts)))


def _from_endpoint(section: RetrievalSection, texts: Sequence[str]) -> np.ndarray:
    vectors: list[list[float]] = []
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        body = {
            "model": section.endpoint_model,
            "input": list(texts[start : start + TEXTS_PER_REQUEST]),
        }
        address = f"{(section.endpoint or '').rstrip('/')}/embeddings"
        try:
            reply = ask_endpoint(address, body, TIMEOUT_SECONDS)
            entries = sorted(reply["data"], key=lambda entry: entry["index"])
            vectors += [entry["embedding"] for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"the embeddings at {address} did not answer ({error}). Run again when it is back."
            ) from error
    return np.asarray(vectors, dtype=np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _vectors_retriever(index: Path, embed: Embedder) -> Retriever:
    vectors = np.load(index / VECTORS_FILE)
    connection = sqlite3.connect(f"file:{index / INDEX_FILE}?mode=ro&immutable=1", uri=True)
    chunks = connection.execute("SELECT id, document, shown FROM chunks ORDER BY number").fetchall()

    def search(question: str, count: int) -> list[Passage]:
        scores = vectors @ embed([question])[0]
        best = np.argsort(-scores, kind="stable")[:count]
        return [
            Passage(id=i, document=d, text=t, score=float(scores[place]))
            for place, (i, d, t) in ((place, chunks[place]) for place in best)
        ]

    return search


def _fused(*retrievers: Retriever) -> Retriever:
    """By reciprocal ranks in several."""

    def search(question: str, count: int) -> list[Passage]:
        scores: dict[str, float] = {}
        found: dict[str, Passage] = {}
        for retriever in retrievers:
            for rank, passage in enumerate(retriever(question, CANDIDATES * count), 1):
                scores[passage.id] = scores.get(passage.id, 0.0) + 1.0 / (RANK_OFFSET + rank)
                found[passage.id] = passage
        best = sorted(found, key=lambda name: -scores[name])[:count]
        return [found[name].model_copy(update={"score": scores[name]}) for name in best]

    return search


def _own(source: str) -> Retriever:
    """A function of the user's.

    Raises:
        RecipeError: It cannot be imported.
    """
    function = load_function(source, "decide.retrieval.by")

    def search(question: str, count: int) -> list[Passage]:
        given = function(question, count)
        try:
            return [_passage(*entry) for entry in given][:count]
        except (TypeError, ValueError) as error:
            raise EvaluationError(
                f"{source} gave {given!r:.200}; it must give a list of (id, text, score)."
            ) from error

    return search


def _passage(name: Any, text: Any, score: Any) -> Passage:
    return Passage(
        id=str(name), document=str(name).partition("#")[0], text=str(text), score=float(score)
    )
