"""Stage `pretrain`: the base model reads documents of the domain before it is tuned.

    documents + a share of general text -> packed rows -> every token is learned -> a plain model

Its result is the base model of all stages after it. With adapters, these are merged, by the same
certified merge that ends a pipeline. Perplexity of held-out documents and of general text is
measured before and after.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from alignflow.errors import CertificateError
from alignflow.files import atomic_write_json, digest_directory
from alignflow.merging import CERTIFICATE_FILE, AdapterStep, MergeOptions, merge
from alignflow.models.adapters import new_adapter
from alignflow.models.loading import MODEL, load_base, quiet
from alignflow.models.scoring import text_losses
from alignflow.recipe import PretrainSection
from alignflow.stages.events import EventWriter
from alignflow.stages.spec import RowAccount, StageResult, StageSpec
from alignflow.training.engine.common import (
    Job,
    prepared_rows,
    read_job,
    read_rows,
    train,
    training_arguments,
)
from alignflow.training.engine.initialization import make_ready
from alignflow.training.engine.packing import PackedCollator, packed, with_replay
from alignflow.training.engine.saving import parameters, save, save_adapter
from alignflow.training.engine.trainer import ThinTrainer

PROBES = 16
"""Held-out documents that the merged model is compared with base plus adapter on."""


class Trainer(ThinTrainer, SFTTrainer):
    """TRL's, on rows that are token ids already."""


def run(spec: StageSpec, work: Path, events: EventWriter) -> StageResult:
    """Runs the stage."""
    job = read_job(spec, work, events, PretrainSection)
    documents, replay = _documents(job, "pretrain", "train"), _documents(job, "replay", "train")
    texts = with_replay(documents, replay, job.section.replay_share, spec.seed)
    rows = packed(texts, job.section.max_length)
    measured = _measured_texts(job)
    trainer = _trainer(job, rows)
    params = parameters(trainer.model, job, trainer.args)
    before = _perplexities(trainer, measured)
    events.metrics(0, before)
    last = train(trainer, job)
    after = _perplexities(trainer, measured)
    _save_plain(trainer.model, job, measured["domain"][:PROBES] or documents[:PROBES])
    return StageResult(
        metrics={
            **{f"{name}_before": figure for name, figure in before.items()},
            **after,
            "loss": last.get("loss"),
            "token_accuracy": last.get("mean_token_accuracy"),
        },
        rows=_account(job, documents=len(documents), replayed=len(texts) - len(documents)),
        params={
            **params,
            "packed_rows": len(rows),
            "packing_density": round(
                sum(len(row["input_ids"]) for row in rows) / len(rows) / job.section.max_length, 4
            ),
            "replay_token_share": round(_share(documents, texts), 4),
        },
        details={"steps": trainer.state.global_step, "tokens": sum(len(ids) for ids in texts)},
    )


def _documents(job: Job[PretrainSection], part: str, name: str) -> list[list[int]]:
    path = job.spec.input("data") / part / f"{name}.parquet"
    return [row["input_ids"] for row in read_rows(path)] if path.is_file() else []


def _share(documents: list[list[int]], texts: list[list[int]]) -> float:
    """Of the tokens that are general text."""
    total = sum(len(ids) for ids in texts)
    return 1 - sum(len(ids) for ids in documents) / total


def _trainer(job: Job[PretrainSection], rows: list[dict[str, Any]]) -> Trainer:
    model = load_base(job.base, dtype=job.weights_dtype, quantization=job.quantization)
    if job.tuning.mode != "full":
        model = new_adapter(model, job.tuning, "CAUSAL_LM")
    arguments = training_arguments(
        SFTConfig,
        job,
        len(rows),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=job.tokenizer,
            data_collator=PackedCollator(job.tokenizer.pad_token_id),
        )
    trainer.lengths = [len(row["input_ids"]) for row in rows]
    trainer.effective_batch_size = job.section.batch_size
    make_ready(trainer, job)
    return trainer


def _measured_texts(job: Job[PretrainSection]) -> dict[str, list[list[int]]]:
    """Held-out documents of the domain, and general text, as far as there are any."""
    path = job.spec.input("data") / "general" / "rows.parquet"
    general = [row["text"] for row in read_rows(path)] if path.is_file() else []
    limit = job.base.context_length
    return {
        "domain": [ids[:limit] for ids in _documents(job, "pretrain", "held_out")],
        "general": [job.tokenizer(text).input_ids[:limit] for text in general],
    }


def _perplexities(trainer: Trainer, texts: dict[str, list[list[int]]]) -> dict[str, float]:
    """Exp of the mean loss of a token after the first, by kind of text."""
    found = {}
    for name, rows in texts.items():
        rows = [row for row in rows if len(row) > 1]
        if rows:
            with trainer.accelerator.autocast(), quiet():
                size = 2 * trainer.args.per_device_train_batch_size
                losses = text_losses(trainer.model, rows, batch_size=size)
            tokens = sum(len(row) - 1 for row in rows)
            found[f"perplexity_{name}"] = math.exp(sum(losses) / tokens)
    return found


def _save_plain(model: Any, job: Job[PretrainSection], probes: list[list[int]]) -> None:
    """Writes `model/`, and `base_model.json`, by which the stages after this one know their base.

    Raises:
        CertificateError: The merged model differs from base plus adapter.
    """
    directory = job.output / MODEL
    if job.tuning.mode == "full":
        save(model, job)
    else:
        adapter = save_adapter(model, job.work / "adapter", job.base, job.quantization)
        options = MergeOptions(
            quantization=job.quantization,  # type: ignore[arg-type]
            probes=tuple(tuple(ids[: job.section.max_length]) for ids in probes),
            base_digest=job.base.digest,
            base_source=job.base.source,
            tokenizer=job.spec.input("data") / "tokenizer",
            replace=True,
        )
        certificate = merge(Path(job.base.path), [AdapterStep(adapter)], directory, options)
        (directory / CERTIFICATE_FILE).rename(job.output / CERTIFICATE_FILE)
        if certificate.status != "passed":
            raise CertificateError(
                f"The merged model differs from base plus adapter ({certificate.figures}). Take "
                "pretrain.tuning.mode full, or report this."
            )
    record = job.base.model_dump(exclude={"path"})
    record |= {"source": f"{job.base.source}+pretrain", "digest": digest_directory(directory)}
    atomic_write_json(job.output / "base_model.json", record)


def _account(job: Job[PretrainSection], *, documents: int, replayed: int) -> RowAccount:
    """Documents in and out. General text beyond its share is not drawn."""
    domain = prepared_rows(job, "pretrain")
    parts = [domain, *([prepared_rows(job, "replay")] if replayed else [])]
    dropped = sum((Counter(part.dropped) for part in parts), Counter())
    not_drawn = sum(part.trained for part in parts) - documents - replayed
    return RowAccount(
        read=sum(part.read for part in parts),
        trained=documents + replayed,
        held_out=domain.held_out,
        dropped=dict(dropped + Counter({"not_drawn": not_drawn})),
    )
