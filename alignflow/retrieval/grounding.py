"""What stands before a question outside of a decision: passages of an index, and demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from alignflow.errors import ArtifactError
from alignflow.recipe import RetrievalSection
from alignflow.retrieval.searching import INDEX_FILE, Passage, retriever_of

SETTINGS_FILE, SHOTS_FILE = "retrieval.json", "shots.json"


class Grounding(NamedTuple):
    """An index with how it is asked, and conversations that show how to answer; either may be absent."""

    directory: Path
    retrieval: RetrievalSection | None
    shots: list[dict[str, Any]]
    """Turns before the question."""

    @classmethod
    def read(cls, directory: Path | str) -> Grounding:
        """From an index artifact, or what `alignflow decide --write` wrote.

        Raises:
            ArtifactError: It is neither.
        """
        place = Path(directory).expanduser().absolute()
        settings, shots = place / SETTINGS_FILE, place / SHOTS_FILE
        if not settings.is_file() and not shots.is_file():
            raise ArtifactError(
                f"{place} is no index: there is neither {SETTINGS_FILE} nor {SHOTS_FILE}. Give the "
                "folder that `alignflow decide --write` wrote, or an artifact of stage index."
            )
        told = settings.is_file() and RetrievalSection.model_validate_json(settings.read_text())
        return cls(place, told or None, json.loads(shots.read_text()) if shots.is_file() else [])

    def passages(self, question: str) -> list[Passage]:
        """What is found for a question."""
        if self.retrieval is None or not (
            (self.directory / INDEX_FILE).is_file() or ":" in self.retrieval.by
        ):
            return []
        return retriever_of(self.directory, self.retrieval)(question, self.retrieval.passages)
