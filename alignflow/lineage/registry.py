"""MLflow's registered model as a projection of the ledger: versions, tags, `champion`, `candidate`.

The ledger's head is the truth, for MLflow has no compare-and-swap. `reconcile` makes the alias equal
to it, after a promotion, after a crash between the two, and whenever somebody moved it by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignflow.errors import CertificateError
from alignflow.faults import faultpoint
from alignflow.ledger import Generation, Judgement, champion, judgements
from alignflow.merging import require_certificate
from alignflow.settings import has_ledger
from alignflow.stages import Artifact, Record, verify
from alignflow.tracking import (
    experiment_id,
    is_server,
    model_digest,
    new_version,
    registry_client,
    tracking_uri,
)

CHAMPION, CANDIDATE = "champion", "candidate"
LAST_SET = "alignflow.champion"
"""Tag of the registered model: the version that the reconciler set last."""
DIGEST = "model_digest"
TAG_CHARACTERS, REASON_CHARACTERS = 5000, 1000
DESCRIBED = "Champion: "
"""How the line on the champion begins in the registered model's description."""


class Reconciled(Record):
    """What was found and done."""

    model: str
    generation: int | None = None
    """Head of the lineage."""
    version: str | None = None
    """Version that the alias names now."""
    moved_from: str | None = None
    """Version that it named before, where it had to be moved."""
    by_hand: bool = False
    """Whether somebody else had moved it."""
    text: str


class Registry:
    """One registered model."""

    def __init__(self, home: Path, model: str) -> None:
        self._model = model
        self._uri = tracking_uri(home)
        self._client = registry_client(self._uri)

    def version_of(self, digest: str) -> str | None:
        """The newest version that is a model of this digest."""
        numbers = [int(one.version) for one in self._versions() if one.tags.get(DIGEST) == digest]
        return str(max(numbers)) if numbers else None

    def _versions(self) -> list[Any]:
        return list(self._client.search_model_versions(f"name = '{self._model}'"))

    def require_version(self, merge: Artifact) -> str:
        """The version of a merged model; registered now if there is none.

        From its directory; behind a server from a run that holds a copy.
        """
        known = self.version_of(model_digest(merge))
        if known is not None:
            return known
        if not is_server(self._uri):
            return new_version(self._client, self._model, merge, None, copy=False)
        experiment = experiment_id(self._client, self._model)
        run = self._client.create_run(experiment, run_name="register")
        version = new_version(self._client, self._model, merge, run.info.run_id, copy=True)
        self._client.set_terminated(run.info.run_id)
        return version

    def tag(self, version: str, **tags: object) -> None:
        """Sets tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self._model, version, name, _tag(value))

    def judge(self, judged: Mapping[str, Judgement]) -> None:
        """Has the versions say what was decided about their models, by digest."""
        for version in self._versions():
            if said := judged.get(version.tags.get(DIGEST)):
                wanted = {name: _tag(value) for name, value in said._asdict().items()}
                new = {
                    name: text for name, text in wanted.items() if version.tags.get(name) != text
                }
                self.tag(str(version.version), **new)

    def describe(self, champion: str) -> None:
        """Has the model's description begin with a line on its champion; a person's own text stays."""
        registered = self._registered()
        if registered is None:  # the base model is served, and no candidate is merged yet
            return
        text = registered.description or ""
        kept = text.partition("\n")[2].lstrip("\n") if text.startswith(DESCRIBED) else text
        wanted = f"{DESCRIBED}{champion}" + (f"\n\n{kept}" if kept else "")
        if wanted != text:
            self._client.update_registered_model(self._model, wanted)

    def named(self, alias: str) -> str | None:
        """Version that an alias names."""
        version = registered.aliases.get(alias) if (registered := self._registered()) else None
        return None if version is None else str(version)

    def last_set(self) -> str | None:
        """Version that the reconciler set last."""
        return registered.tags.get(LAST_SET) or None if (registered := self._registered()) else None

    def _registered(self) -> Any:
        models = self._client.search_registered_models(f"name = '{self._model}'")
        return models[0] if models else None

    def remember(self, version: str | None) -> None:
        """Notes what the reconciler set."""
        self._client.set_registered_model_tag(self._model, LAST_SET, version or "")

    def point(self, alias: str, version: str | None) -> None:
        """Moves an alias; None removes it."""
        if version is None:
            self._client.delete_registered_model_alias(self._model, alias)
        else:
            self._client.set_registered_model_alias(self._model, alias, version)


def verified_model(directory: Path) -> Artifact:
    """A merge artifact whose every file is what its manifest says, with a certificate that passed.

    Raises:
        ArtifactError: A file is missing, added or changed.
        CertificateError: It holds no merged model, or one without a passed certificate.
    """
    artifact = verify(directory)
    if artifact.stage != "merge":
        raise CertificateError(
            f"{directory} is an artifact of stage {artifact.stage}; only a merged model with its "
            "certificate can become the champion. Name a run or a merge artifact."
        )
    require_certificate(directory / "model")
    return artifact


def register_candidate(home: Path, model: str, merge: Artifact, **tags: object) -> str:
    """Registers a merged model, or finds it registered, and gives it the alias `candidate`."""
    verified_model(merge.directory)
    registry = Registry(home, model)
    version = registry.require_version(merge)
    faultpoint("promotion.registered")
    registry.tag(version, **tags)
    registry.point(CANDIDATE, version)
    return version


def drop_candidate(home: Path, model: str, version: str) -> None:
    """Takes the alias `candidate` from a version that has its verdict, unless another has it."""
    registry = Registry(home, model)
    if registry.named(CANDIDATE) == version:
        registry.point(CANDIDATE, None)


def reconcile(home: Path, model: str) -> Reconciled:
    """Makes the alias `champion` name the ledger's head, and says if somebody else had moved it.

    Without a lineage nothing is touched. Where generation 0 is the base model, which is merged
    nowhere, there is no alias.
    """
    head = champion(home, model) if has_ledger(home) else None
    if head is None:
        return Reconciled(model=model, text=f"{model} has no champion yet")
    registry = Registry(home, model)
    wanted = _version_of_head(registry, head)
    registry.judge(judgements(home, model))
    served, last = registry.named(CHAMPION), registry.last_set()
    by_hand = served not in (wanted, last)
    if served != wanted:
        registry.point(CHAMPION, wanted)
    faultpoint("promotion.alias")
    if last != wanted:
        registry.remember(wanted)
    registry.describe(_described(head, wanted))
    if wanted is not None and registry.named(CANDIDATE) == wanted:
        registry.point(CANDIDATE, None)
    return Reconciled(
        model=model,
        generation=head.generation,
        version=wanted,
        moved_from=served if served != wanted else None,
        by_hand=by_hand,
        text=_in_words(model, head, wanted, served, by_hand),
    )


def _tag(value: object) -> str:
    return "none" if value is None else str(value)[:TAG_CHARACTERS]


def _described(head: Generation, version: str | None) -> str:
    served = f"version {version}" if version else "the base model, which has no version"
    since = head.created.partition("T")[0]
    why = " ".join(head.reason.split())[:REASON_CHARACTERS]
    return f"generation {head.generation}, {served}, since {since} ({why})"


def _version_of_head(registry: Registry, head: Generation) -> str | None:
    if "merge" not in head.artifacts:
        return None
    version = registry.version_of(head.digest)
    if version is None:
        version = registry.require_version(verified_model(Path(head.artifacts["merge"])))
    return version


def _in_words(
    model: str, head: Generation, wanted: str | None, served: str | None, by_hand: bool
) -> str:
    names = f"version {wanted}" if wanted else "the base model, which has no version"
    truth = f"the champion of {model} is generation {head.generation}, {names}"
    if by_hand:
        return (
            f"somebody had moved models:/{model}@{CHAMPION} to version {served or 'none'} by hand; "
            f"{truth} by the ledger, and the alias names it again. Use `alignflow promote` or "
            "`alignflow rollback` to change it."
        )
    return f"{truth}; the alias was moved to it" if served != wanted else truth
