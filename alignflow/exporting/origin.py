"""Where a model comes from, as its artifacts, certificate and report say. Names of files, no paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from alignflow.checking import read_config
from alignflow.data import fetch_card, read_gguf
from alignflow.errors import AlignflowError, ArtifactError, RecipeError
from alignflow.merging import Certificate
from alignflow.pipeline import decision, load_report, recent_runs
from alignflow.recipe import DATA_PARTS, TRAINING_STAGES, is_hub_id
from alignflow.stages import (
    MANIFEST_FILE,
    Artifact,
    NamedModel,
    Prepared,
    PrepareParams,
    ResolvedModel,
    read_manifest,
)

COMMIT = re.compile(r"[0-9a-f]{40}")
UNKNOWN = "unknown"


class Source(NamedTuple):
    """A source of rows."""

    part: str
    name: str
    digest: str
    is_on_hub: bool


class Base(NamedTuple):
    """The model that training began with."""

    name: str
    digest: str
    is_on_hub: bool
    licence: str
    """An identifier, or `unknown`: it is never guessed."""
    licence_from: str
    """Where that stands, or why it is unknown."""


class Origin(NamedTuple):
    """What a card says."""

    base: Base
    stages: list[Artifact]
    """What the model was made by, in order; those that are gone are left out."""
    sources: list[Source]
    report: Mapping[str, Any]
    """Of the newest run that made it; empty where there is none."""

    @property
    def trained(self) -> list[Artifact]:
        """The stages that trained."""
        return [artifact for artifact in self.stages if artifact.stage in TRAINING_STAGES]

    @property
    def verdict(self) -> str | None:
        """What the gate decided on it, and why; None where it was not asked."""
        retrain = self.report.get("retrain")
        decided = decision(retrain)
        reasons = ((retrain or {}).get("gate") or {}).get("reasons")
        return f"{decided}: {'; '.join(reasons)}" if decided and reasons else None


def origin_of(model: Path, certificate: Certificate | None, home: Path) -> Origin:
    """Where a model comes from.

    Args:
        model: Directory of the merged model or the adapter.
        certificate: Of a merged model.
        home: Where the report of its run is looked for.
    """
    adapters = [Path(entry["path"]) for entry in certificate.adapters] if certificate else []
    stages: dict[str, Artifact] = {}
    for directory in (model, *adapters):
        if (directory.parent / MANIFEST_FILE).is_file():
            _add(directory.parent, stages)
    made_by = list(stages.values())
    return Origin(
        base=_base(model, certificate, made_by),
        stages=made_by,
        sources=[source for prepare in made_by for source in _sources(prepare)],
        report=_report(model, home),
    )


def _add(directory: Path, stages: dict[str, Artifact]) -> None:
    """Puts an artifact behind those that it was made from."""
    with suppress(ArtifactError):  # gone or damaged: the card says which stages it knows of
        artifact = read_manifest(directory)
        for reference in artifact.spec.inputs.values():
            if reference.key not in stages:
                _add(Path(reference.path), stages)
        stages[artifact.key] = artifact


def _sources(artifact: Artifact) -> Iterator[Source]:
    if artifact.stage != "prepare":
        return
    params = PrepareParams.of(artifact.spec)
    for part in DATA_PARTS:
        for source in getattr(params.data, part):
            digest = params.sources.get(source.source, UNKNOWN)
            name, is_on_hub = shown(source.source, digest)
            yield Source(part, name, digest, is_on_hub)


def shown(source: str, digest: str) -> tuple[str, bool]:
    """A source as strangers may read it, and whether they find it on the Hub: a path is only its name."""
    is_on_hub = COMMIT.fullmatch(digest) is not None
    if is_on_hub or is_hub_id(source) or source.startswith(("builtin:", "ledger:")):
        return source, is_on_hub
    return source.rstrip("/").rpartition("/")[2] or UNKNOWN, False


def _base(model: Path, certificate: Certificate | None, stages: Sequence[Artifact]) -> Base:
    prepare = next((stage for stage in stages if stage.stage == "prepare"), None)
    if prepare is not None:
        named = PrepareParams.of(prepare.spec).base_model
        place = prepare.spec.paths.get("base_model") or _place_of(prepare)
    elif certificate is not None:
        known = certificate.base
        named = NamedModel(source=known["source"], digest=known["digest"])
        place = known["source"]
    else:
        record = {**read_config(model / "base_model.json")} if _has_record(model) else {}
        config = read_config(model / "adapter_config.json")
        source = record.get("source") or config.get("base_model_name_or_path") or UNKNOWN
        named = NamedModel(source=source, digest=record.get("digest") or UNKNOWN)
        place = source
    name, is_on_hub = shown(named.source, named.digest)
    licence, told_by = _licence(named, is_on_hub, Path(place) if place else None)
    return Base(name, named.digest, is_on_hub, licence, told_by)


def _has_record(adapter: Path) -> bool:
    return (adapter / "base_model.json").is_file()


def _place_of(prepare: Artifact) -> str | None:
    """Where the base model was when its data was prepared."""
    file = Prepared(prepare.directory).location
    return read_config(file).get("path") if file.is_file() else None


def _licence(
    base: NamedModel | ResolvedModel, is_on_hub: bool, place: Path | None
) -> tuple[str, str]:
    """Licence of a base and where it stands; `unknown` and why."""
    if place is not None and place.is_file():
        told = read_gguf(place, "base_model").metadata.get("general.license")
        return (str(told), "its GGUF file") if told else (UNKNOWN, "its GGUF file names none")
    if place is not None and (told := _licence_in(place / "README.md")):
        return told, "its model card"
    if place is not None and (place / "config.json").is_file():
        told = read_config(place / "config.json").get("license")
        if isinstance(told, str):
            return told, "its config"
    if not is_on_hub:
        return UNKNOWN, "neither a model card nor the config beside its weights names one"
    try:
        card = fetch_card(base)
    except AlignflowError as error:
        return UNKNOWN, f"its model card could not be read: {error.message}"
    told = _licence_in(card)
    return (told, "its model card") if told else (UNKNOWN, "its model card names none")


def _licence_in(card: Path) -> str | None:
    """`license` of a model card's front matter."""
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    told = front.get("license") if isinstance(front, dict) else None
    return told if isinstance(told, str) else None


def _report(model: Path, home: Path) -> Mapping[str, Any]:
    """The report of the newest run that made the model; empty where there is none."""
    wanted = str(model.absolute())
    for run in recent_runs(home):
        with suppress(RecipeError):  # somebody deletes the run, or its report is damaged
            report = load_report(home, run)
            if wanted in (report.merged_model, report.adapter):
                return report
    return {}
