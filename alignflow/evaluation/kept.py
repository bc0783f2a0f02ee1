"""Evaluations of unchanged models, kept: `<home>/cache/evaluations/<digest>.json`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from alignflow.evaluation.measure import Measured
from alignflow.evaluation.metric_modules import metric_digests
from alignflow.files import atomic_write_text, digest_json
from alignflow.recipe import EvaluationSection
from alignflow.stages import library_versions

WITHOUT_EFFECT = ("models", "bootstrap_resamples")
"""Settings that change no response and no score."""


def evaluation_digest(
    models: dict[str, str], data: str, section: EvaluationSection, **options: int | str | None
) -> str:
    """Names an evaluation: equal digests, equal figures. The metrics' files are hashed too.

    `models` are digests by role in the evaluation, `options` what else the responses depend on.
    """
    settings = {
        "alignflow": version("alignflow"),
        "models": models,
        "data": data,
        "section": section.model_dump(mode="json", exclude=set(WITHOUT_EFFECT)),
        "files": metric_digests(section),
        "libraries": library_versions(),
    }
    return digest_json(settings | options)


def kept_or(home: Path, digest: str, make: Callable[[], Measured]) -> tuple[Measured, bool]:
    """A kept evaluation and True, else a new one, which is kept, and False."""
    path = home / "cache" / "evaluations" / f"{digest}.json"
    with suppress(OSError, ValueError):  # not there, or not whole
        return Measured.model_validate_json(path.read_text()), True
    made = make()
    atomic_write_text(path, made.model_dump_json())
    return made, False
