"""What may leave: a merged model as its certificate describes it, or an adapter as its stage left it."""

from __future__ import annotations

from pathlib import Path

from alignflow.errors import ArtifactError, CertificateError
from alignflow.files import hash_files
from alignflow.merging import CERTIFICATE_FILE, Certificate, read_certificate
from alignflow.stages import MANIFEST_FILE, verify

AGAIN = "Merge it again: `alignflow merge BASE ADAPTER OUT`, or the stage `merge` of a recipe."


def certified(model: Path) -> Certificate:
    """The certificate of a merged model: it passed, and every file is the one that it was about.

    Raises:
        CertificateError: There is none, or it did not pass.
        ArtifactError: A file has changed since, or is gone.
    """
    found = read_certificate(model)
    if found is None:
        raise CertificateError(
            f"{model} is not exported: it has no {CERTIFICATE_FILE} that can be read, so nobody knows "
            f"whether it is base plus adapter. {AGAIN}"
        )
    if found.status == "unverified":
        raise CertificateError(
            f"{model} is not exported: it was merged with --no-verify. Merge it again without."
        )
    if found.status != "passed":
        raise CertificateError(
            f"{model} is not exported: it differs from base plus adapter: {found.in_words()}. Merge "
            "in a wider type (merge.dtype float32, or --dtype float32), or look at the adapter."
        )
    on_disk = hash_files(model)
    changed = [name for name, file in found.files.items() if on_disk.get(name) != file]
    if changed:
        raise ArtifactError(
            f"{model} is not exported: {', '.join(changed)} changed since the certificate was "
            f"written. {AGAIN}"
        )
    return found


def adapter_files(adapter: Path) -> list[str]:
    """Files of an adapter, verified where a stage made it.

    Raises:
        ArtifactError: One has changed, or is gone.
    """
    if (adapter.parent / MANIFEST_FILE).is_file():
        verify(adapter.parent)
    return sorted(path.name for path in adapter.iterdir() if path.is_file())
