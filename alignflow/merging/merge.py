"""Base and adapters in one, streamed: bounded memory, resumable, certified.

The base is never loaded. Each tensor is read from a memory map, merged with PEFT's arithmetic,
written and hashed; a finished file is certified, so that a second call continues a killed one.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from alignflow.errors import ArtifactError
from alignflow.files import digest_json, fsync_directory, sha256_file
from alignflow.merging.adapter import AdapterStep, read_adapter
from alignflow.merging.carrying import prepare_directory, write_small_files
from alignflow.merging.certificate import (
    Certificate,
    Figures,
    Limits,
    read_certificate,
    status_of,
)
from alignflow.merging.lineage import check_trained_on
from alignflow.merging.merge_plan import MergePlan, ShardPlan
from alignflow.merging.options import MergeOptions
from alignflow.merging.planning import plan
from alignflow.merging.streaming import STATE, Written, finished_shard, sha256_mapped, write_shard
from alignflow.models.headers import FLOATS

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that its --max-lora-rank takes."""
Progress = Callable[[int, int], None]
TOLD_TIMES = 500
"""At most, that progress is told of, whatever the size."""


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
    if done := finished_merge(out, planned):
        return _checked_again(done, planned, out, options)
    streamed = _must_stream(planned, options) if options.verify else None
    prepare_directory(out, planned, STATE, options.replace)
    written = write_weights(planned, out, options, progress or _silent)
    if options.base_digest is None:
        sources = {name: s.source_sha256 for name, s in written.items() if s.source_sha256}
        check_trained_on(planned.steps, planned.base, sources)
    write_small_files(out, planned, options)
    fsync_directory(out)
    if options.verify:
        _read_back(out, written)
    figures = _figures(planned, out, options, streamed) if options.verify else None
    certificate = _certificate(planned, out, options, written, figures)
    certificate.write(out)
    shutil.rmtree(out / STATE)
    return certificate


def _read_back(out: Path, written: dict[str, Written]) -> None:
    """Hashes the weights as the disk has them.

    Raises:
        ArtifactError: They are not what was written.
    """
    for name, shard in written.items():
        found = sha256_mapped(out / name)
        if found != shard.sha256:
            raise ArtifactError(
                f"{out / name} has sha256 {found[:12]}, but {shard.sha256[:12]} was written. The "
                "disk or the file system lost data: look at its log, then merge again elsewhere."
            )


def finished_merge(out: Path, planned: MergePlan) -> Certificate | None:
    """The certificate of a finished merge of this plan whose files are still what it says."""
    certificate = read_certificate(out)
    if certificate is None or certificate.plan != planned.digest:
        return None
    for name, entry in certificate.files.items():
        path = out / name
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            return None
    return certificate


def _checked_again(
    done: Certificate, planned: MergePlan, out: Path, options: MergeOptions
) -> Certificate:
    """A finished merge's certificate, with the check it lacked or by other limits."""
    missing = options.verify and done.figures is None
    if not missing and done.limits == _limits(options):
        return done
    figures = _figures(planned, out, options) if missing else done.figures
    status = _status(done.finite, figures, _limits(options))
    certificate = done.model_copy(
        update={"figures": figures, "limits": _limits(options), "status": status}
    )
    certificate.write(out)
    return certificate


def write_weights(
    planned: MergePlan, out: Path, options: MergeOptions, progress: Progress
) -> dict[str, Written]:
    """Writes every shard that is not there yet."""
    progress(0, planned.bytes)
    written = {}
    for shard in planned.shards:
        if found := finished_shard(out, planned, shard):
            written[shard.file] = found
    left = [shard for shard in planned.shards if shard.file not in written]
    with ThreadPoolExecutor(1) as hasher:  # busy while torch is imported, and beside the writer
        wanted = left if options.base_digest is None else []
        sources = {s.file: hasher.submit(sha256_mapped, planned.base / s.file) for s in wanted}
        try:
            return _write_left(planned, out, options, progress, written, left, sources)
        finally:
            for source in sources.values():
                source.cancel()


def _write_left(
    planned: MergePlan,
    out: Path,
    options: MergeOptions,
    progress: Progress,
    written: dict[str, Written],
    left: list[ShardPlan],
    sources: dict[str, Future[str]],
) -> dict[str, Written]:
    from alignflow.merging.arithmetic import Arithmetic
    from alignflow.merging.products import threads
    from alignflow.merging.reader import Reader

    reader = Reader()
    arithmetic = Arithmetic(reader, options.block_bytes)
    total = planned.bytes
    done = total - sum(shard.bytes for shard in left)

    told = done

    def tell(count: int) -> None:
        nonlocal done, told
        done += count
        if done - told >= total / TOLD_TIMES or done == total:
            told = done
            progress(done, total)

    with threads(1):  # where the result depends on it, Arithmetic takes the number it found
        for shard in left:
            written[shard.file] = write_shard(
                out, planned, shard, source_digest=sources.get(shard.file), progress=tell,
                arithmetic=arithmetic,
            )  # fmt: skip
            reader.close(planned.base / shard.file)
    return written


def _silent(_done: int, _total: int) -> None:
    pass


def _must_stream(planned: MergePlan, options: MergeOptions) -> bool:
    from alignflow.merging.verifying import must_stream

    return must_stream(
        planned.base, planned.steps, planned.config_changes, _probe_quantization(options)
    )


def _probe_quantization(options: MergeOptions) -> str | None:
    return options.quantization if options.probe_quantization else None


def _figures(
    planned: MergePlan, out: Path, options: MergeOptions, streamed: bool | None = None
) -> Figures:
    from alignflow.merging.verifying import verify

    probes: list[Any] = [p if isinstance(p, str) else list(p) for p in options.probes]
    quantization = _probe_quantization(options)
    return verify(planned.base, list(planned.steps), out, probes, quantization, streamed)


def _certificate(
    planned: MergePlan,
    out: Path,
    options: MergeOptions,
    written: dict[str, Written],
    figures: Figures | None,
) -> Certificate:
    limits = _limits(options)
    finite = all(shard.finite for shard in written.values())
    sources = {name: shard.source_sha256 for name, shard in written.items()}
    return Certificate(
        status=_status(finite, figures, limits),
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
        limits=limits,
        files=_files(out, written),
        plan=planned.digest,
        notes=list(planned.notes),
        serve=serve_lines(planned, options.final or out),
    )


def _status(
    finite: bool, figures: Figures | None, limits: Limits
) -> Literal["passed", "failed", "unverified"]:
    if not finite:
        return "failed"
    return "unverified" if figures is None else status_of(figures, limits)


def _limits(options: MergeOptions) -> Limits:
    return Limits(max_kl=options.max_kl, min_top1_agreement=options.min_top1_agreement)


def _files(out: Path, written: dict[str, Written]) -> dict[str, dict[str, Any]]:
    """Digests of all files: of the weights as they were written, of the small ones read again."""
    small = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(out.iterdir())
        if path.is_file() and path.name not in written and not path.name.startswith(".")
    }
    weights = {
        name: {"sha256": shard.sha256, "bytes": shard.bytes} for name, shard in written.items()
    }
    return dict(sorted({**small, **weights}.items()))


def _dtype(planned: MergePlan) -> str:
    bytes_by: dict[str, int] = {}
    for shard in planned.shards:
        for tensor in shard.tensors:
            bytes_by[tensor.dtype] = bytes_by.get(tensor.dtype, 0) + tensor.source.elements
    most = max(bytes_by, key=lambda code: bytes_by[code])
    return FLOATS.get(most, most)


def serve_lines(planned: MergePlan, out: Path) -> dict[str, str]:
    """VLLM's command lines for the merged model and, for one plain adapter, base plus adapter."""
    lines = {"merged": shlex.join(["vllm", "serve", str(out)])}
    if len(planned.adapters) == 1 and planned.adapters[0]["weight"] == 1.0:
        path = planned.steps[0].path
        rank = max((factors.rank for factors in read_adapter(path).factors), default=0)
        served = next((r for r in VLLM_RANKS if r >= rank), None)
        if served is not None:
            lines["base_plus_adapter"] = shlex.join(
                ["vllm", "serve", str(planned.base), "--enable-lora", "--max-lora-rank",
                 str(served), "--lora-modules", f"adapter={path}"]
            )  # fmt: skip
    return lines
