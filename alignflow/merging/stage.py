"""Stage `merge`: one plain model of base and adapter, certified, reloaded and judged again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from alignflow.data import StoredRows
from alignflow.errors import ArtifactError, CertificateError
from alignflow.evaluation import (
    Measured,
    evaluation_digest,
    figures,
    flat,
    free_memory,
    kept_or,
    load_job,
    measure,
    responses,
    samples,
    write_responses,
)
from alignflow.files import digest_json
from alignflow.merging.certificate import Certificate, Figures, Limits
from alignflow.merging.certified_merge import merge
from alignflow.merging.planning import AdapterStep, MergeOptions
from alignflow.merging.verifying import ENOUGH_TOKENS, fits_memory
from alignflow.models import BaseModel, base_of, check_adapter, load_merged, load_tokenizer
from alignflow.recipe import EvaluationSection
from alignflow.stages import (
    ADAPTER,
    MODEL,
    RESPONSES_FILE,
    EventWriter,
    MergeParams,
    Prepared,
    StageResult,
    StageSpec,
    artifact_directory,
)

PROBES = 64
"""Of a kind, at most."""
TRAINED = {
    "sft": ["input_ids"],
    "preferences": ["prompt_ids", "chosen_ids"],
    "ratings": ["prompt_ids", "completion_ids"],
    "pretrain": ["input_ids"],
}
"""Columns of a part's rows that make a text."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        CertificateError: The merged model differs from base plus adapter.
        EvaluationError: The merged model cannot be scored.
    """
    params = MergeParams.of(spec)
    section, evaluation = params.section, params.evaluation
    prepared, merged = spec.input("data"), work / "output" / MODEL
    tokenizer = load_tokenizer(prepared)
    base, trained = base_of(spec), spec.input("aligned")
    source, adapters = _merge_inputs(base, trained)
    options = MergeOptions(
        dtype=section.dtype if adapters else _whole_dtype(section.dtype, base),
        quantization=params.quantization,
        qlora_base=section.qlora_base,
        probes=tuple(tuple(ids) for ids in _probes(prepared, evaluation)),
        limits=Limits(max_kl=section.max_kl),
        base_digest=base.digest if adapters else None,
        base_source=base.source if adapters else None,
        tokenizer=Prepared(prepared).tokenizer,
        final=artifact_directory(Path(spec.home), spec.stage, spec.key) / MODEL,
        replace=True,
    )
    certificate = merge(
        source,
        adapters,
        merged,
        options,
        progress=lambda done, total: events.progress(done, total, "bytes"),
    )
    compared = _passed(certificate)
    free_memory()
    result = StageResult(
        metrics={
            "certificate_kl": compared.kl,
            "certificate_top1_agreement": compared.top1_agreement,
            "certificate_max_logp_difference": compared.max_logp_difference,
        },
        params={"merged_dtype": certificate.dtype, "merge_arithmetic": certificate.arithmetic},
        details={"certificate": certificate.model_dump(mode="json", exclude={"files"})},
    )
    if not _has_evaluation(prepared):
        return result
    if not fits_memory(merged, 4 if params.dtype == "float32" else 2):
        events.message(
            "The merged model does not fit this machine's memory, so it does not answer the "
            "evaluation's prompts: its certificate compares it with base plus adapter."
        )
        return result
    judged = _judge_merged(spec, certificate, tokenizer, merged, events)
    metrics, details = result.metrics | judged.metrics, result.details | judged.details
    return result.model_copy(update={"metrics": metrics, "details": details})


def _merge_inputs(base: BaseModel, trained: Path) -> tuple[Path, list[AdapterStep]]:
    """What is merged into what: the adapter into the base, or the whole trained model into nothing.

    Raises:
        ArtifactError: There is neither adapter nor model, or it belongs to another base.
    """
    adapter, model = trained / ADAPTER, trained / MODEL
    if adapter.is_dir():
        check_adapter(adapter, base)
        return Path(base.path), [AdapterStep(adapter)]
    if model.is_dir():
        return model, []
    raise ArtifactError(f"{trained} holds neither adapter/ nor model/. Run its stage again.")


def _probes(prepared: Path, evaluation: EvaluationSection) -> list[list[int]]:
    """Token ids that merged and adapter are compared on: evaluation prompts, then training rows."""
    found: list[list[int]] = []
    if Prepared(prepared).evaluation.is_file():
        job = load_job(prepared, evaluation.model_copy(update={"metrics": []}), 0)
        found = [prompt.ids for prompt in job.prompts[:PROBES]]
    for part, columns in TRAINED.items():
        if sum(map(len, found)) < ENOUGH_TOKENS:
            for row in islice(StoredRows.of(Prepared(prepared).rows(part)), PROBES):
                found.append([token for column in columns for token in row[column]])
    return found


def _has_evaluation(prepared: Path) -> bool:
    """Whether there is something to judge a model on."""
    files = Prepared(prepared)
    return files.evaluation.is_file() or files.general.is_file()


def _whole_dtype(dtype: str, base: BaseModel) -> Any:
    """A model that was trained whole, in float32, is written in the base's type for `auto`."""
    known = base.torch_dtype in ("float32", "bfloat16", "float16")
    return base.torch_dtype if dtype == "auto" and known else dtype


def _passed(certificate: Certificate) -> Figures:
    """The figures of a certificate that passed.

    Raises:
        CertificateError: Says which figure exceeds which limit.
    """
    compared, limits = certificate.figures, certificate.limits
    if compared is None:
        raise CertificateError("The merged model was not compared with base plus adapter.")
    if certificate.status == "passed":
        return compared
    weights = compared.weights
    if weights is not None and weights.wrong_count:
        raise CertificateError(
            f"The merged model is not base plus adapter: {certificate.in_words()}. That is a fault of "
            "the disk or of alignflow, and no limit eases it: merge again, and report it."
        )
    raise CertificateError(
        f"The merged model differs from base plus adapter: {certificate.in_words()}. Merge in a "
        f"wider type (merge.dtype float32), or ease the limit (merge.max_kl {limits.max_kl:g}) if the "
        "loss is acceptable."
    )


def _judge_merged(
    spec: StageSpec, certificate: Certificate, tokenizer: Any, merged: Path, events: EventWriter
) -> StageResult:
    """The figures of `merged`, reloaded as any user would."""
    params = MergeParams.of(spec)
    job = load_job(spec.input("data"), params.evaluation, spec.seed)
    digest = evaluation_digest(
        {"merged": digest_json({n: file["sha256"] for n, file in certificate.files.items()})},
        spec.inputs["data"].digest,
        params.evaluation,
        seed=spec.seed,
        dtype=params.dtype,
        quantization=None,
    )
    total = responses(job)

    def make() -> Measured:
        model = load_merged(merged, params.dtype)
        return measure(
            model, tokenizer, job, lambda done: events.progress(done, total, "responses")
        )

    measured = {"merged": kept_or(Path(spec.home), digest, make)[0]}
    write_responses(merged.with_name(RESPONSES_FILE), job, measured)
    return StageResult(
        metrics=flat(measured),
        details={
            **figures(measured, params.evaluation.bootstrap_resamples, spec.seed),
            "samples": samples(job, measured),
        },
    )
