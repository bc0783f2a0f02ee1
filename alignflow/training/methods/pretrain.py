"""Stage `pretrain`: the base model reads documents of the domain before it is tuned.

    documents + a share of general text -> packed rows -> every token is learned -> a plain model

The loss is SFT's on every token but a document's first; the replayed share keeps what the base knew
(Ibrahim et al. 2024, arXiv:2403.08763). Its result is the base model of all stages after it. With
adapters, these are merged, by the same certified merge that ends a pipeline. Perplexity of held-out
documents and of general text is measured before and after. Left out: the paper's re-warming is the
section's schedule, and nothing of the base's own data is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from alignflow.data import StoredRows, read_judged
from alignflow.errors import CertificateError
from alignflow.files import atomic_write_json, digest_directory
from alignflow.merging import CERTIFICATE_FILE, AdapterStep, MergeOptions, merge
from alignflow.models import quiet, text_losses
from alignflow.recipe import PretrainSection
from alignflow.stages import ADAPTER, MODEL, RowAccount
from alignflow.training.engine import (
    Job,
    Measured,
    PackedCollator,
    Packing,
    Row,
    Supervised,
    apart,
    base_to_tune,
    packed,
    prepared_rows,
    proved_packing,
    save,
    save_adapter,
    with_replay,
)

PROBES = 16
"""Held-out documents that the merged model is compared with base plus adapter on."""


class Pretrain(Supervised[PretrainSection]):
    """Learns documents, packed with a share of general text."""

    section = PretrainSection

    @cached_property
    def documents(self) -> list[list[int]]:
        """Of the domain, in token ids."""
        return _token_ids(self.job, "pretrain", "train")

    @cached_property
    def texts(self) -> list[list[int]]:
        """The documents, and the general text that was drawn."""
        replay = _token_ids(self.job, "replay", "train")
        share = self.job.section.replay_share
        return with_replay(self.documents, replay, share, self.job.spec.seed)

    @cached_property
    def packing(self) -> Packing:
        """How documents share a row; the events say so where they do not."""
        found = proved_packing(self.job.base)
        if found is Packing.OFF:
            self.job.events.message(
                f"Documents are not packed: in a {self.job.base.model_type} here one would see "
                "those before it in its row. Each has a row of its own, and batch_size counts them."
            )
        return found

    @cached_property
    def rows(self) -> list[Row]:
        length = self.job.section.max_length
        alone = self.packing is Packing.OFF
        return apart(self.texts, length) if alone else packed(self.texts, length)

    @cached_property
    def measured(self) -> dict[str, list[list[int]]]:
        """Held-out documents of the domain, and general text, as far as there are any."""
        limit = self.job.base.context_length
        general = [row["text"] for row in read_judged(self.job.data.general)]
        return {
            "domain": [ids[:limit] for ids in _token_ids(self.job, "pretrain", "held_out")],
            "general": [self.job.tokenizer(text).input_ids[:limit] for text in general],
        }

    @cached_property
    def model(self) -> Any:
        return base_to_tune(self.job)

    def arguments(self) -> dict[str, Any]:
        """The collator reads the lengths of the documents in a row."""
        return {**super().arguments(), "remove_unused_columns": False}

    def features(self, row: Row) -> dict[str, Any]:
        """Every token is learned."""
        return row

    def options(self) -> dict[str, Any]:
        pad = self.job.tokenizer.pad_token_id
        return {"data_collator": PackedCollator(pad, self.packing)}

    def prepare(self, trainer: Any) -> dict[str, Any]:
        """Measures the base; says how full the rows are and what share is general text."""
        self.before = _perplexities(trainer, self.measured)
        self.job.events.metrics(0, self.before)
        packed_tokens = sum(len(row["input_ids"]) for row in self.rows)
        room = len(self.rows) * self.job.section.max_length
        replayed = 1 - _tokens(self.documents) / _tokens(self.texts)
        return {
            "packing": self.packing.value,
            "packed_rows": len(self.rows),
            "packing_density": round(packed_tokens / room, 4),
            "replay_token_share": round(replayed, 4),
        }

    def measure(self, trainer: Any, last: Mapping[str, float]) -> Measured:
        before = {f"{name}_before": figure for name, figure in self.before.items()}
        after = _perplexities(trainer, self.measured)
        return Measured({**before, **after}, {"tokens": _tokens(self.texts)})

    def save(self) -> None:
        """Writes a plain model, which is the base of the stages after this one."""
        probes = self.measured["domain"][:PROBES] or self.documents[:PROBES]
        _save_plain(self.model, self.job, probes)

    def account(self) -> RowAccount:
        """Documents in and out. General text beyond its share is not drawn."""
        domain, trained = prepared_rows(self.job, "pretrain"), len(self.texts)
        replayed = trained > len(self.documents)
        parts = [domain, *([prepared_rows(self.job, "replay")] if replayed else [])]
        prepared = RowAccount.total(parts)
        not_drawn = Counter({"not_drawn": prepared.trained - trained})
        return RowAccount(
            read=prepared.read,
            trained=trained,
            held_out=domain.held_out,
            dropped=dict(Counter(prepared.dropped) + not_drawn),
        )


run = Pretrain.run


def _token_ids(job: Job[PretrainSection], part: str, name: str) -> list[list[int]]:
    return [row["input_ids"] for row in StoredRows.of(job.data.rows(part, name))]


def _tokens(texts: list[list[int]]) -> int:
    return sum(len(ids) for ids in texts)


def _perplexities(trainer: Any, texts: dict[str, list[list[int]]]) -> dict[str, float]:
    """Exp of the mean loss of a token after the first, by kind of text."""
    perplexities = {}
    for name, rows in texts.items():
        rows = [row for row in rows if len(row) > 1]
        if rows:
            with trainer.accelerator.autocast(), quiet():
                size = 2 * trainer.args.per_device_train_batch_size
                losses = text_losses(trainer.model, rows, batch_size=size)
            tokens = _tokens(rows) - len(rows)
            perplexities[f"perplexity_{name}"] = math.exp(sum(losses) / tokens)
    return perplexities


def _save_plain(model: Any, job: Job[PretrainSection], probes: list[list[int]]) -> None:
    """Writes `model/`, and `base_model.json`, by which the stages after this one know their base.

    Raises:
        CertificateError: The merged model differs from base plus adapter.
    """
    directory = job.output / MODEL
    if job.tuning.mode == "full":
        save(model, job)
    else:
        adapter = save_adapter(model, job.work / ADAPTER, job.base, job.quantization)
        options = MergeOptions(
            quantization=job.quantization,  # type: ignore[arg-type]
            probes=tuple(tuple(ids[: job.section.max_length]) for ids in probes),
            base_digest=job.base.digest,
            base_source=job.base.source,
            tokenizer=job.data.tokenizer,
            replace=True,
        )
        certificate = merge(Path(job.base.path), [AdapterStep(adapter)], directory, options)
        (directory / CERTIFICATE_FILE).rename(job.output / CERTIFICATE_FILE)
        if certificate.status != "passed":
            raise CertificateError(
                f"The merged model differs from base plus adapter ({certificate.figures}). Take "
                "pretrain.tuning.mode full, or report this."
            )
    record = job.base.identity
    record |= {"source": f"{job.base.source}+pretrain", "digest": digest_directory(directory)}
    atomic_write_json(job.output / "base_model.json", record)
