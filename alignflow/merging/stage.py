"""Stage `merge`: one plain model of base and adapter, certified, reloaded and judged again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignflow.errors import CertificateError
from alignflow.evaluation.kept import evaluation_digest, kept_or
from alignflow.evaluation.measure import Measured, load_job, measure, responses
from alignflow.evaluation.suite import figures, flat, free_memory, samples, write_responses
from alignflow.events import EventWriter
from alignflow.files import digest_json
from alignflow.merging import Certificate, Limits, merge
from alignflow.modeling import device, load_tokenizer, read_base
from alignflow.recipe import EvaluationSection, MergeSection
from alignflow.stage import StageResult, StageSpec

PROBES = 16
PLAIN_PROBES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Write one sentence about the sea. The sea is wide, and nobody has counted its waves.",
)
"""For a recipe with neither evaluation prompts nor general text."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage; see the module.

    Raises:
        CertificateError: The merged model differs from base plus adapter.
        EvaluationError: The merged model cannot be scored.
    """
    section = MergeSection.model_validate(spec.params["section"])
    evaluation = EvaluationSection.model_validate(spec.params["evaluation"])
    prepared, output = spec.input("data"), work / "output"
    tokenizer = load_tokenizer(prepared)
    certificate = merge(
        read_base(prepared),
        spec.input("aligned"),
        prepared / "tokenizer",
        output / "model",
        probes=probes(prepared, tokenizer, evaluation),
        quantization="nf4" if spec.params["tuning"]["mode"] == "qlora" else None,
        qlora_base=section.qlora_base,
        dtype=section.dtype,
        limits=Limits(max_kl=section.max_kl, min_top1_agreement=section.min_top1_agreement),
        progress=lambda done, total: events.progress(done, total, "steps"),
    )
    demand(certificate)
    free_memory()
    result = StageResult(
        metrics={
            "certificate_kl": certificate.figures.kl,
            "certificate_top1_agreement": certificate.figures.top1_agreement,
            "certificate_max_logp_difference": certificate.figures.max_logp_difference,
        },
        params={"merged_dtype": certificate.dtype, "merge_arithmetic": certificate.arithmetic},
        details={"certificate": certificate.model_dump(mode="json", exclude={"files"})},
    )
    if not has_evaluation(prepared):
        return result
    judged = judge_merged(spec, evaluation, certificate, tokenizer, output, events)
    return result.model_copy(
        update={
            "metrics": result.metrics | judged.metrics,
            "details": result.details | judged.details,
        }
    )


def probes(prepared: Path, tokenizer: Any, evaluation: EvaluationSection) -> list[list[int]]:
    """Token ids that merged and adapter are compared on: the first evaluation prompts, or text."""
    if not has_evaluation(prepared):
        return [tokenizer(text).input_ids for text in PLAIN_PROBES]
    job = load_job(prepared, evaluation.model_copy(update={"metrics": []}), 0)
    if job.prompts:
        return [prompt.ids for prompt in job.prompts[:PROBES]]
    rows = [tokenizer(text).input_ids[:512] for text in job.general[:PROBES]]
    return [row for row in rows if row]


def has_evaluation(prepared: Path) -> bool:
    """Whether there is something to judge a model on."""
    files = ("evaluation/prompts.parquet", "general/rows.parquet")
    return any((prepared / name).is_file() for name in files)


def demand(certificate: Certificate) -> None:
    """Refuses a failed certificate.

    Raises:
        CertificateError: Says which figure exceeds which limit.
    """
    if certificate.status == "passed":
        return
    found, limits = certificate.figures, certificate.limits
    raise CertificateError(
        "The merged model differs from base plus adapter: KL "
        f"{found.kl:.3g} nats per token (merge.max_kl {limits.max_kl:g}), most likely token equal "
        f"in {found.top1_agreement:.2%} (merge.min_top1_agreement {limits.min_top1_agreement:.2%}),"
        f" logits {'finite' if found.finite else 'not finite'}. Merge in a wider type "
        "(merge.dtype float32), or raise the limit if the loss is acceptable."
    )


def judge_merged(
    spec: StageSpec,
    evaluation: EvaluationSection,
    certificate: Certificate,
    tokenizer: Any,
    output: Path,
    events: EventWriter,
) -> StageResult:
    """The figures of `merged`, reloaded as any user would."""
    job = load_job(spec.input("data"), evaluation, spec.seed)
    digest = evaluation_digest(
        {"merged": digest_json({n: file["sha256"] for n, file in certificate.files.items()})},
        spec.inputs["data"].digest,
        evaluation,
        seed=spec.seed,
        dtype=spec.params["dtype"],
        quantization=None,
    )
    total = responses(job)

    def make() -> Measured:
        model = reload(output / "model", spec.params["dtype"])
        return measure(
            model, tokenizer, job, lambda done: events.progress(done, total, "responses")
        )

    measured = {"merged": kept_or(Path(spec.home), digest, make)[0]}
    write_responses(output / "responses.parquet", job, measured)
    return StageResult(
        metrics=flat(measured),
        details={
            **figures(measured, evaluation.bootstrap_resamples, spec.seed),
            "samples": samples(job, measured),
        },
    )


def reload(directory: Path, dtype: str) -> Any:
    """The merged model by Transformers alone."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=dtype, trust_remote_code=False, use_safetensors=True
    )
    return model.to(device())
