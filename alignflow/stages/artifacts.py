"""The artifact store: the truth about what is done.

    <home>/work/<stage>/<key>/        spec.json, events.jsonl, checkpoints/, output/   in progress
    <home>/artifacts/<stage>/<key>/   output's files, events.jsonl, manifest.json      finished

An artifact appears by one rename. Its manifest, written last and fsynced, holds every file's size
and sha256, the spec, the result, library versions and seconds. What does not verify is moved aside.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError, StageError
from alignflow.files import (
    atomic_write_json,
    digest_json,
    fsync_directory,
    fsync_file,
    hash_files,
    regular_files,
)
from alignflow.stages.events import EVENTS_FILE
from alignflow.stages.spec import InputRef, Record, StageResult, StageSpec, library_versions

MANIFEST_FILE = "manifest.json"
MANIFEST_FIELDS = (
    *("stage", "key", "files", "spec", "result", "seconds", "attempts", "libraries"),
)


class Artifact(Record):
    """A finished, certified output directory of a stage."""

    stage: str
    key: str
    path: str
    files: dict[str, dict[str, Any]]
    """Relative path to sha256 and bytes, the manifest itself left out."""
    spec: StageSpec
    result: StageResult
    seconds: float
    attempts: int = 1
    libraries: dict[str, str]
    mlflow_run_id: str | None = None

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return Path(self.path)

    def digest(self, parts: Sequence[str] = ()) -> str:
        """sha256 over names and contents of `parts` (files or folders); all but events if none."""
        chosen = {
            name: entry["sha256"]
            for name, entry in self.files.items()
            if (_within(name, parts) if parts else name != EVENTS_FILE)
        }
        missing = [part for part in parts if not any(_within(name, [part]) for name in chosen)]
        if missing:
            raise ArtifactError(
                f"{self.path}: the {self.stage} artifact has no {', '.join(missing)}. "
                "Delete the artifact and run the recipe again."
            )
        return digest_json(chosen)

    def ref(self, parts: Sequence[str] = ()) -> InputRef:
        """Reference to `parts` for a following stage's spec."""
        return InputRef(stage=self.stage, key=self.key, path=self.path, digest=self.digest(parts))


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(part + "/") for part in parts)


def artifact_directory(home: Path, stage: str, key: str) -> Path:
    """Where the finished artifact of a stage key stands."""
    return home / "artifacts" / stage / key


def work_directory(home: Path, stage: str, key: str) -> Path:
    """Where a stage key's work in progress stands."""
    return home / "work" / stage / key


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Holds `directory`'s lock; raises StageError when another process does.

    The lock is the kernel's (flock), so it ends with the process that holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StageError(
                f"{directory} is being worked on by another process. Wait for it, or stop it."
            ) from error
        yield


def publish(spec: StageSpec, result: StageResult, seconds: float, attempts: int) -> Artifact:
    """Turns `output/` of a spec's work directory into its artifact, by one rename."""
    home = Path(spec.home)
    work = work_directory(home, spec.stage, spec.key)
    output = work / "output"
    if (work / EVENTS_FILE).exists():
        shutil.copyfile(work / EVENTS_FILE, output / EVENTS_FILE)
    (output / MANIFEST_FILE).unlink(missing_ok=True)
    for path in regular_files(output):
        fsync_file(path)
    manifest = {
        "schema": 1,
        "stage": spec.stage,
        "key": spec.key,
        "files": hash_files(output),
        "spec": spec.model_dump(mode="json"),
        "result": result.model_dump(mode="json"),
        "seconds": round(seconds, 3),
        "attempts": attempts,
        "libraries": library_versions(),
        "created": time.time(),
    }
    atomic_write_json(output / MANIFEST_FILE, manifest)
    target = artifact_directory(home, spec.stage, spec.key)
    target.parent.mkdir(parents=True, exist_ok=True)
    while not _renamed(output, target):
        _move_aside(target)
    fsync_directory(target.parent)
    shutil.rmtree(work, ignore_errors=True)
    return read_manifest(target)


def read_manifest(directory: Path) -> Artifact:
    """The artifact in `directory`, its files not verified.

    Raises:
        ArtifactError: There is no manifest, or it does not parse.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        return Artifact(path=str(directory), **{name: manifest[name] for name in MANIFEST_FIELDS})
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{directory} has no {MANIFEST_FILE}, so its writer did not finish. Run the stage again."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Run the stage again.") from error


def verify(directory: Path) -> Artifact:
    """The artifact in `directory`, every file's size and sha256 checked.

    Raises:
        ArtifactError: Names the first file that is missing, added or changed.
    """
    artifact = read_manifest(directory)
    try:
        on_disk = hash_files(directory)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{error.filename} was taken away while it was read. Run the stage again."
        ) from error
    on_disk.pop(MANIFEST_FILE, None)
    for name in sorted(set(on_disk) | set(artifact.files)):
        expected, actual = artifact.files.get(name), on_disk.get(name)
        if expected != actual:
            raise ArtifactError(
                f"{directory / name}: the manifest says {expected or 'no such file'}, "
                f"on disk is {actual or 'no such file'}. Run the stage again."
            )
    return artifact


def find(home: Path, stage: str, key: str) -> Artifact | None:
    """The verified artifact of a stage key, or None. One that does not verify is moved aside."""
    directory = artifact_directory(home, stage, key)
    try:
        return verify(directory)
    except ArtifactError:
        _move_aside(directory)
        return None


def _move_aside(directory: Path) -> None:
    """Keeps a damaged artifact for inspection under another name."""
    with suppress(FileNotFoundError):  # there is none, or another process has moved it
        names = (directory.with_name(f"bad-{directory.name}-{number}") for number in count())
        next(aside for aside in names if _renamed(directory, aside))


def _renamed(directory: Path, target: Path) -> bool:
    """Renames a directory that is not empty; False where another one has the name."""
    try:
        os.rename(directory, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def recertify(directory: Path) -> None:
    """Has the manifest say what the files are now: texts were erased from them on demand."""
    path = directory / MANIFEST_FILE
    files = hash_files(directory)
    files.pop(MANIFEST_FILE)
    atomic_write_json(path, {**json.loads(path.read_text()), "files": files, "erased": time.time()})
