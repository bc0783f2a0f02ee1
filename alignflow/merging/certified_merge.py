"""Base and adapters in one, streamed: bounded memory, resumable, certified.

The base is never loaded. Each tensor is read from a memory map, merged with PEFT's arithmetic,
written and hashed; a finished file is certified, so that a second call continues a killed one.
"""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from alignflow.errors import ArtifactError
from alignflow.files import digest_json, fsync_directory, hash_files, sha256_file
from alignflow.merging.certificate import Certificate, Figures, read_certificate, status_of
from alignflow.merging.planning import (
    AdapterStep,
    MergeOptions,
    MergePlan,
    check_read_weights,
    plan,
    read_adapter,
)
from alignflow.merging.writing import (
    STATE,
    Progress,
    Written,
    prepare_directory,
    write_small_files,
    write_weights,
)
from alignflow.models import FLOATS

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that its --max-lora-rank takes."""


def merge(
    base: Path,
    adapters: list[AdapterStep],
    out: Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Writes the merged model to `out`, with its certificate.

    Args:
        base: Directory of the base model (safetensors, one file or several).
        adapters: In the order they are merged; none passes the base through, verified.
        out: Directory that is made. A merge of the same plan that was killed there is continued;
            a finished one whose files are still what its certificate says is left as it is.
        options: How to merge.
        progress: Told (bytes done, bytes in all).

    Returns:
        The certificate: passed, failed, or unverified where the logits check was left out. The
        caller decides what a failed one means.

    Raises:
        ArtifactError: Base or adapter is damaged, or a tensor cannot be merged: it is named.
        DiskSpaceError: The disk is too small.
        NumericsError: The base or the adapter makes a logit that is no number.
    """
    options = options or MergeOptions()
    planned = plan(base, adapters, options)
    if done := _finished_merge(out, planned):
        return _checked_again(done, planned, out, options)
    streamed = None
    if options.verify:
        from alignflow.merging.verifying import must_stream

        quantization = options.compared_quantization
        streamed = must_stream(base, planned.steps, planned.config_changes, quantization)
    prepare_directory(out, planned, options.replace)
    written = write_weights(planned, out, options, progress or (lambda _done, _total: None))
    if options.base_digest is None:
        sources = {name: s.source_sha256 for name, s in written.items() if s.source_sha256}
        check_read_weights(planned.steps, planned.base, sources)
    write_small_files(out, planned, options)
    fsync_directory(out)
    if options.verify:
        _read_back(out, written)
    figures = _figures(planned, out, options, streamed) if options.verify else None
    certificate = _certificate(planned, out, options, written, figures)
    certificate.write(out)
    shutil.rmtree(out / STATE)
    return certificate


def _finished_merge(out: Path, planned: MergePlan) -> Certificate | None:
    """The certificate of a finished merge of this plan whose files are still what it says."""
    certificate = read_certificate(out)
    if certificate is None or certificate.plan != planned.digest:
        return None
    intact = all(
        (out / name).is_file() and sha256_file(out / name) == entry["sha256"]
        for name, entry in certificate.files.items()
    )
    return certificate if intact else None


def _checked_again(
    done: Certificate, planned: MergePlan, out: Path, options: MergeOptions
) -> Certificate:
    """A finished merge's certificate, with the check it lacked or by other limits."""
    lacking = options.verify and done.figures is None
    if not lacking and done.limits == options.limits:
        return done
    figures = _figures(planned, out, options) if lacking else done.figures
    status = status_of(done.finite, figures, options.limits)
    certificate = done.model_copy(
        update={"figures": figures, "limits": options.limits, "status": status}
    )
    certificate.write(out)
    return certificate


def _read_back(out: Path, written: dict[str, Written]) -> None:
    """Hashes the weights as the disk has them.

    Raises:
        ArtifactError: They are not what was written.
    """
    for name, shard in written.items():
        sha256 = sha256_file(out / name)
        if sha256 != shard.sha256:
            raise ArtifactError(
                f"{out / name} has sha256 {sha256[:12]}, but {shard.sha256[:12]} was written. The "
                "disk or the file system lost data: look at its log, then merge again elsewhere."
            )


def _figures(
    planned: MergePlan, out: Path, options: MergeOptions, streamed: bool | None = None
) -> Figures:
    from alignflow.merging.verifying import verify

    probes: list[Any] = [p if isinstance(p, str) else list(p) for p in options.probes]
    return verify(
        planned.base,
        list(planned.steps),
        out,
        probes,
        options.compared_quantization,
        streamed,
        options.quantization if options.dequantizes else None,
    )


def _certificate(
    planned: MergePlan,
    out: Path,
    options: MergeOptions,
    written: dict[str, Written],
    figures: Figures | None,
) -> Certificate:
    finite = all(shard.finite for shard in written.values())
    sources = {name: shard.source_sha256 for name, shard in written.items()}
    return Certificate(
        status=status_of(finite, figures, options.limits),
        base={
            "source": options.base_source or str(planned.base),
            "digest": options.base_digest or digest_json(sources),
            "header_digest": planned.header_digest,
        },
        adapters=list(planned.adapters),
        arithmetic=planned.arithmetic,
        dtype=_dtype(planned),
        finite=finite,
        figures=figures,
        limits=options.limits,
        files=_files(out, written),
        plan=planned.digest,
        serve=_serve_lines(planned, options.final or out),
    )


def _files(out: Path, written: dict[str, Written]) -> dict[str, dict[str, Any]]:
    """Digests of all files: of the weights as they were written, of the small ones read again."""
    files = hash_files(out, {name: shard.sha256 for name, shard in written.items()})
    return {name: entry for name, entry in files.items() if not name.startswith(".")}


def _dtype(planned: MergePlan) -> str:
    """The type of most of the weights."""
    elements: Counter[str] = Counter()
    for tensor in planned.tensors:
        elements[tensor.dtype] += tensor.source.elements
    most = elements.most_common(1)[0][0]
    return FLOATS.get(most, most)


def _serve_lines(planned: MergePlan, out: Path) -> dict[str, str]:
    """VLLM's command lines for the merged model and, for one plain adapter, base plus adapter."""
    lines = {"merged": shlex.join(["vllm", "serve", str(out)])}
    if len(planned.adapters) == 1 and planned.adapters[0]["weight"] == 1.0:
        path = planned.steps[0].path
        rank = max((factors.a.shape[0] for factors in read_adapter(path).factors), default=0)
        served = next((r for r in VLLM_RANKS if r >= rank), None)
        if served is not None:
            lora = ["--enable-lora", "--max-lora-rank", str(served)]
            lora += ["--lora-modules", f"adapter={path}"]
            if (path / "generation_config.json").is_file():  # the adapter's, by which responses end
                lora += ["--tokenizer", str(path), "--generation-config", str(path)]
            lines["base_plus_adapter"] = shlex.join(["vllm", "serve", str(planned.base), *lora])
    return lines
