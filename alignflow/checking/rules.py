"""Rules of thumb of the field, and what a recipe alone shows to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alignflow.checking.findings import Finding, advice, error, warning
from alignflow.checking.judging_rules import did_you_mean, judging_findings
from alignflow.checking.ppo_rules import ppo_findings, sampling_findings
from alignflow.checking.retrain_rules import retrain_findings
from alignflow.checking.trainer_arguments import trainer_argument_findings
from alignflow.errors import DataError
from alignflow.evaluation import declared, text_metrics
from alignflow.recipe import (
    DATA_PARTS,
    TRAINING_STAGES,
    DPOSection,
    ORPOSection,
    PPOSection,
    Recipe,
    SimPOSection,
    TrainingSection,
    TuningSection,
    is_hub_id,
)

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
SMALLEST_USEFUL_RANK, LARGEST_FORMAT_RANK, REASONING_RANK, LARGEST_USUAL_RANK = 4, 16, 64, 128
LARGEST_FULL_RATE, SMALLEST_LORA_RATE, LARGEST_LORA_RATE = 5e-5, 5e-6, 1e-3
"""Usual rates for models of at least 100M parameters; smaller ones bear more."""

ADAPTER_FIELDS = (
    *("rank", "alpha", "target_modules", "rank_pattern", "alpha_pattern", "layers_to_transform"),
    *("initialization", "use_rslora", "use_dora", "init_adapter"),
)
LARGEST_USUAL_RATIO = 32


def recipe_findings(recipe: Recipe, *, small_model: bool) -> list[Finding]:
    """What the recipe shows by itself, files that it names outside `data` and the base included.

    A `small_model` has less than 100M parameters; other rates are usual there.
    """
    return [
        *judging_findings(recipe),
        *_loss_findings(recipe.section_of("dpo")),
        *_micro_batch_findings(recipe),
        *_reference_free_advice(recipe),
        *sampling_findings(recipe),
        *ppo_findings(recipe),
        *retrain_findings(recipe, text_metrics()),
        *(
            finding
            for name, section in recipe.training_sections.items()
            for finding in trainer_argument_findings(name, section.trainer_args)
        ),
        *_template_findings(recipe),
        *_adapter_advice(recipe),
        *([] if small_model else _rate_advice(recipe)),
        *_judging_advice(recipe),
        *_pin_advice(recipe),
    ]


def _template_findings(recipe: Recipe) -> Iterator[Finding]:
    template = recipe.base_model.chat_template
    if template is not None and not Path(template).is_file():
        yield error(
            "base_model.chat_template",
            f"{template!r} is no file ({Path(template).absolute()}). Name a Jinja file, or leave "
            "it out for the tokenizer's own.",
            DataError,
        )


def _loss_findings(dpo: TrainingSection | None) -> Iterator[Finding]:
    if not isinstance(dpo, DPOSection):
        return
    for name in dpo.loss_type:
        if name not in LOSSES:
            yield error(
                "dpo.loss_type", f"TRL has no loss {name!r}; {did_you_mean(name, list(LOSSES))}"
            )
    if set(dpo.loss_type) & {"aot", "aot_unpaired"}:
        yield advice(
            "dpo.loss_type",
            f"is {dpo.loss_type}: aot compares what a micro-batch has in order, so "
            "compute.micro_batch_size is part of its result.",
        )
    if dpo.loss_type and "sft" not in dpo.loss_type and set(dpo.loss_type) <= set(LOSSES):
        yield advice(
            "dpo.loss_type",
            f"is {dpo.loss_type}: without an sft term DPO may lower the likelihood of chosen "
            "responses too. [sigmoid, sft] keeps it up.",
        )
    if not 0.01 <= dpo.beta <= 0.5:
        yield advice(
            "dpo.beta", f"is {dpo.beta}; usual are 0.01 (drifts far) to 0.5 (stays close)."
        )


def _micro_batch_findings(recipe: Recipe) -> Iterator[Finding]:
    asked = recipe.compute.micro_batch_size
    for name in recipe.training_sections:
        least = TRAINING_STAGES[name].least_micro_batch
        if asked != "auto" and asked < least:
            yield error(
                "compute.micro_batch_size",
                f"is {asked}; {name} compares the rows of a micro-batch, at least {least}. Set "
                f"{least}, or auto, which goes no lower when memory runs out.",
            )


def _reference_free_advice(recipe: Recipe) -> Iterator[Finding]:
    orpo, simpo = recipe.settings(ORPOSection), recipe.settings(SimPOSection)
    if orpo is not None and not 0.05 <= orpo.beta <= 1:
        yield advice(
            "orpo.beta",
            f"is {orpo.beta:g}; usual are 0.1 to 0.5. The odds ratio term weighs that much against "
            "the NLL.",
        )
    if simpo is not None and recipe.sft is None and recipe.tuning.init_adapter is None:
        yield advice(
            "simpo", "starts from the base model; SimPO refines a tuned one. Add an sft section."
        )
    if simpo is not None and not 1 <= simpo.beta <= 10:
        yield advice("simpo.beta", f"is {simpo.beta:g}; usual are 2 to 10, not DPO's 0.1.")


def _adapter_advice(recipe: Recipe) -> Iterator[Finding]:
    tuning = recipe.tuning
    if tuning.mode == "full":
        yield from _unused_advice(tuning)
        return
    if tuning.alpha is not None and tuning.alpha != 2 * tuning.rank and not tuning.use_rslora:
        yield advice(
            "tuning.alpha",
            f"is {tuning.alpha:g} at rank {tuning.rank}; the usual 2 * rank is {2 * tuning.rank}. "
            "Leave alpha out to get it at every rank.",
        )
    yield from _rank_advice(recipe)
    targets = tuning.target_modules
    if tuning.mode == "qlora" and targets != "all-linear":
        yield advice(
            "tuning.target_modules",
            f"is {targets!r}; QLoRA reaches full tuning only with adapters on all-linear.",
        )
    elif targets == "attention-qv" and tuning.rank >= REASONING_RANK:
        yield advice(
            "tuning.target_modules",
            f"is attention-qv at rank {tuning.rank}; a lower rank on all-linear learns more with "
            "as many parameters.",
        )
    yield from _start_advice(recipe)
    if tuning.dropout > 0.1:
        yield advice("tuning.dropout", f"is {tuning.dropout}; usual are 0 to 0.1.")
    if tuning.adapter_dtype == "bfloat16":
        yield advice(
            "tuning.adapter_dtype",
            "is bfloat16, whose updates are rounded by chance; float32 adapters cost little memory.",
        )


def _start_advice(recipe: Recipe) -> Iterator[Finding]:
    tuning = recipe.tuning
    if tuning.initialization != "default" and tuning.init_adapter is not None:
        yield advice(
            "tuning.initialization",
            f"is {tuning.initialization}, but init_adapter gives the start; remove one.",
        )
    if tuning.lora_plus_ratio is not None and tuning.lora_plus_ratio > LARGEST_USUAL_RATIO:
        yield advice(
            "tuning.lora_plus_ratio",
            f"is {tuning.lora_plus_ratio:g}; the paper takes 16, with about half the usual rate.",
        )


def _unused_advice(tuning: TuningSection) -> Iterator[Finding]:
    for name in ADAPTER_FIELDS:
        if name in tuning.model_fields_set and getattr(tuning, name):
            yield advice(f"tuning.{name}", "has no effect with mode full; remove it.")


def _rank_advice(recipe: Recipe) -> Iterator[Finding]:
    field, tuning, rank = "tuning.rank", recipe.tuning, recipe.tuning.rank
    named = [use.name for use in recipe.evaluation.uses]
    is_format = any(name in declared() and declared()[name].judges_form for name in named)
    if rank < SMALLEST_USEFUL_RANK:
        yield advice(field, f"is {rank}; format and style need 8 to 16.")
    elif rank > LARGEST_USUAL_RANK:
        over = f"above {LARGEST_USUAL_RANK} little is gained over memory spent."
        yield advice(field, f"is {rank}; {over}")
    elif is_format and rank > LARGEST_FORMAT_RANK:
        needs = f"for a format ({', '.join(named)}), which needs 8 to 16."
        yield advice(field, f"is {rank} {needs} Take 64 to 128 for reasoning.")
    if rank >= REASONING_RANK and not tuning.use_rslora:
        yield advice(
            "tuning.use_rslora",
            f"is off at rank {rank}; from {REASONING_RANK} on it keeps the update's size steady "
            "(alpha / sqrt(rank)).",
        )


def _rate_advice(recipe: Recipe) -> Iterator[Finding]:
    full = recipe.tuning.mode == "full"
    for name, section in recipe.training_sections.items():
        field, rate = f"{name}.learning_rate", section.learning_rate
        if full and rate > LARGEST_FULL_RATE:
            text = f"is {rate:g} for full tuning; usual are at most {LARGEST_FULL_RATE:g}, a tenth"
            yield advice(field, f"{text} of an adapter's.")
        elif not full and rate > LARGEST_LORA_RATE:
            text = f"is {rate:g}; adapters of large models diverge above {LARGEST_LORA_RATE:g}."
            yield advice(field, text)
        elif not full and rate < SMALLEST_LORA_RATE and not isinstance(section, PPOSection):
            text = f"is {rate:g}, usual for full tuning; adapters take about ten times as much."
            yield advice(field, text)


def _judging_advice(recipe: Recipe) -> Iterator[Finding]:
    if not recipe.data.evaluation and recipe.training_sections:
        yield advice(
            "data.evaluation", "is empty, so no answers are judged; name prompts with targets."
        )
    if not recipe.data.general:
        yield advice(
            "data.general", "is empty, so forgetting is not measured; name some general text."
        )
    if recipe.data.preferences and recipe.data.held_out_share == 0:
        yield warning(
            "data.held_out_share",
            "is 0: unless rows have a `split`, no pairs are left to measure accuracy on. 0.1 is usual.",
        )


def _pin_advice(recipe: Recipe) -> Iterator[Finding]:
    named = [("base_model", recipe.base_model)]
    named += [
        (f"data.{part}", given) for part in DATA_PARTS for given in getattr(recipe.data, part)
    ]
    loose = [(field, n) for field, n in named if not n.revision and is_hub_id(n.source)]
    if loose:
        names = ", ".join(dict.fromkeys(given.source for _, given in loose))
        yield advice(
            f"{loose[0][0]}.revision",
            f"is not set: {names} may change between runs. Pin the 40-digit commit.",
        )
