"""Evaluations of unchanged models, kept: `<home>/cache/evaluations/<digest>.json`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignflow.evaluation.measure import Measured
from alignflow.evaluation.metric_modules import metric_digests
from alignflow.files import atomic_write_text, digest_json
from alignflow.recipe import EvaluationSection
from alignflow.stages.spec import library_versions

WITHOUT_EFFECT = ("models", "bootstrap_resamples")
"""Settings that change no response and no score."""


def evaluation_digest(
    models: dict[str, str],
    data: str,
    section: EvaluationSection,
    *,
    seed: int,
    dtype: str,
    quantization: str | None,
) -> str:
    """Names an evaluation: equal digests, equal figures.

    Args:
        models: Digests of what is judged, by role in the evaluation.
        data: Digest of what it is judged on.
        section: How it is judged; the metrics' files are hashed too.
        seed: Of the sampled responses.
        dtype: Compute type.
        quantization: Of the base's weights.
    """
    settings = section.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    return digest_json(
        {
            "alignflow": version("alignflow"),
            "models": models,
            "data": data,
            "section": settings,
            "files": metric_digests(section),
            "seed": seed,
            "dtype": dtype,
            "quantization": quantization,
            "libraries": library_versions(),
        }
    )


def kept_or(home: Path, digest: str, make: Callable[[], Measured]) -> tuple[Measured, bool]:
    """A kept evaluation and True, else a new one, which is kept, and False."""
    path = home / "cache" / "evaluations" / f"{digest}.json"
    if (kept := _read(path)) is not None:
        return kept, True
    made = make()
    atomic_write_text(path, made.model_dump_json())
    return made, False


def _read(path: Path) -> Measured | None:
    """None for a file that is not there or does not parse."""
    try:
        content: Any = path.read_text()
        return Measured.model_validate_json(content)
    except (OSError, ValueError):
        return None
