"""From a model, data and this machine to the text of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

from alignflow.checking import (
    SMALL_PARAMETERS,
    Needs,
    Surroundings,
    gib,
    needs_of,
    raise_errors,
    read_config,
    surroundings,
)
from alignflow.data import (
    PlainTokenizer,
    context_length,
    fetch_spoken,
    has_tokenizer,
    template_in_force,
)
from alignflow.drafting import choices
from alignflow.drafting.choices import Choice, Choices
from alignflow.drafting.interview import Interview
from alignflow.drafting.looking import Seen, look_at, needs_template
from alignflow.drafting.targets import METRICS, Kind
from alignflow.drafting.writing import Node, written
from alignflow.errors import DataError, StageError
from alignflow.recipe import SPLITS, DataSource, ModelSource, Recipe, is_builtin, is_hub_id

TEMPLATE = Path(__file__).parent / "chatml_tools.jinja"
"""A chat template that writes tools and calls, in the tokens of ChatML."""
CHATML = ("<|im_start|>", "<|im_end|>")
PAIR_METHODS = ("dpo", "orpo", "simpo")
TRAINED = ("pretrain", "sft", "preferences", "ratings")

Parts = Mapping[str, list[Seen]]
Fields = dict[str, Node]


class Draft(NamedTuple):
    """A recipe's text, and that of the chat template beside it, where it needs one."""

    text: str
    template: str | None
    notes: list[str]
    """What could not be looked at, and why."""


class Here(NamedTuple):
    """What there is of the model on this machine."""

    around: Surroundings
    tokenizer: Path | None
    """Directory of its tokenizer; None where rows cannot be measured."""
    context: int | None
    """Longest text that it reads."""
    notes: list[str]


class Asked(NamedTuple):
    """What a draft is made from."""

    model: ModelSource
    sources: list[DataSource]
    databases: list[str]
    """SQLite files that answers may be run on."""
    path: Path
    """Where the recipe will stand."""
    home: Path


def draft(asked: Asked, interview: Interview, head: Sequence[str]) -> Draft:
    """A recipe that fits model, data and machine. `head` are lines of comment above it.

    Raises:
        AlignflowError: The model or the data are not there, or nothing could be trained on them.
    """
    here = _model_here(asked)
    model, seen = _looked_at(asked, here)
    if named := _columns_asked(asked, seen, interview):
        asked = asked._replace(sources=named)
        model, seen = _looked_at(asked, here)
    for one in seen:
        if one.part is None:
            raise DataError(one.problem)
    parts = _by_part(seen, interview)
    fields = _fields(asked, model, parts, interview, here)
    template = TEMPLATE.read_text(encoding="utf-8") if model.chat_template else None
    return Draft(written([*head], fields), template, here.notes)


def _model_here(asked: Asked) -> Here:
    probe = {"name": "draft", "base_model": asked.model, "data": {"sft": asked.sources}}
    around = surroundings(Recipe.model_validate(probe), asked.home)
    raise_errors("init", around.findings)
    directory, notes, context = around.directory, list[str](), None
    if directory is None and is_hub_id(asked.model.source) and not constants.HF_HUB_OFFLINE:
        try:
            directory = fetch_spoken(asked.model)
        except StageError as problem:
            notes.append(f"rows are not measured: {problem.message}")
    if around.shape is not None:
        context = around.shape.context
    if context is None and directory is not None:
        context = context_length(read_config(directory / "config.json"))
    tokenizer = directory if directory is not None and has_tokenizer(directory) else None
    return Here(around, tokenizer, context, notes)


def _looked_at(asked: Asked, here: Here) -> tuple[ModelSource, list[Seen]]:
    """What the sources are; the model names another chat template where its own does not take them."""
    place = here.tokenizer
    look = partial(look_at, asked.sources, directory=place, context=here.context)
    if place is None:
        return asked.model, look(model=asked.model)
    if template_in_force(place, asked.model) is not None:
        seen = look(model=asked.model)
        if not needs_template(seen):
            return asked.model, seen
        problem = next(one.problem for one in seen if needs_template([one]))
        if not set(CHATML) <= PlainTokenizer(place).vocabulary.keys():
            raise DataError(problem)
    other = asked.model.model_copy(update={"chat_template": str(TEMPLATE)})
    return other, look(model=other)


def _columns_asked(
    asked: Asked, seen: Sequence[Seen], interview: Interview
) -> list[DataSource] | None:
    """The sources with the columns that somebody names; None where there is nothing to ask."""
    unknown = next((one for one in seen if one.part is None and len(one.names) > 1), None)
    if unknown is None or not interview.is_heard:
        return None
    source, names = unknown.source, unknown.names
    prompt = interview.choice(f"{source.source}: which column is the question?", names, names[0])
    others = [name for name in names if name != prompt]
    answer = interview.choice(f"{source.source}: which is its answer?", others, others[0])
    named = source.model_copy(update={"columns": {"prompt": prompt, "completion": answer}})
    return [named if one == source else one for one in asked.sources]


def _by_part(seen: Sequence[Seen], interview: Interview) -> Parts:
    """The sources by part; demonstrations in files named for tests are asked, not trained on."""
    parts: dict[str, list[Seen]] = {}
    others = [one for one in seen if one.part == "sft" and not _named_for_tests(one)]
    for one in seen:
        part = one.part or ""
        if part == "sft" and others and _named_for_tests(one):
            part = "evaluation"
        if part == "pretrain":
            told = interview.choice(
                f"{one.source.source} has texts. What are they?",
                ("documents", "demonstrations"),
                "documents",
            )
            part = "pretrain" if told == "documents" else "sft"
        parts.setdefault(part, []).append(one)
    _demand_trainable(parts)
    return parts


def _named_for_tests(one: Seen) -> bool:
    words = re.split(r"[-_.]", Path(one.source.source).name.lower())
    return bool({*words} & {*SPLITS["test"], *SPLITS["validation"], "evaluation", "heldout"})


def _demand_trainable(parts: Parts) -> None:
    if prompts := parts.get("prompts"):
        raise DataError(
            f"{prompts[0].source.source} has prompts and no answers. Give demonstrations, pairs, ratings "
            "or documents; methods that learn from prompts alone are in docs/strategies.md."
        )
    if not set(TRAINED) & parts.keys():
        named = ", ".join(one.source.source for one in parts["evaluation"])
        raise DataError(
            f"{named} has prompts with targets, to be asked. Give rows to train on too."
        )
    if parts.get("preferences") and parts.get("ratings"):
        raise DataError(
            f"{parts['preferences'][0].source.source} has pairs, {parts['ratings'][0].source.source} "
            "ratings; one run aligns by one of them. Leave one out."
        )


def _fields(
    asked: Asked, model: ModelSource, parts: Parts, interview: Interview, here: Here
) -> Fields:
    asks = _asks(parts)
    data: Fields = {part: _sources(parts[part]) for part in TRAINED if part in parts}
    fields: Fields = {
        "base_model": _base_choice(asked, model, here),
        "data": {**data, "evaluation": asks},
    }
    method = _method(parts, interview)
    rank = choices.RANKS[
        interview.choice("What is it to learn?", [*choices.RANKS], "style or format")
    ]
    modes = _modes(fields, Wanted(parts, method, rank), here, asked.home)
    fields |= modes[interview.choice("Which weights are tuned?", [*modes], next(iter(modes)))]
    if _plain(asks):
        fields["evaluation"] = _evaluation(asked, parts, interview)
    return fields


def _base_choice(asked: Asked, model: ModelSource, here: Here) -> Choice:
    shape = here.around.shape
    size = f"{shape.parameters:,} parameters" if shape else "size unknown until it is downloaded"
    context = f", context {here.context} tokens" if here.context else ""
    given = asked.model.model_dump(mode="json", exclude_defaults=True)
    if model.chat_template != asked.model.chat_template:
        given["chat_template"] = str(asked.path.with_suffix(".jinja"))
        return Choice(given, f"{size}{context}; its own template has no place for rows with tools")
    plain = given["source"] + (f"@{model.revision}" if model.revision else "")
    return Choice(plain, f"{size}{context}")


def _sources(seen: Sequence[Seen]) -> Node:
    named = [choices.source_choice(one) for one in seen]
    return named[0] if len(named) == 1 else named


def _asks(parts: Parts) -> Node:
    """What is asked in an evaluation."""
    if given := parts.get("evaluation"):
        return _sources(given)
    return choices.evaluation_choice(parts.get("sft", []))


def _method(parts: Parts, interview: Interview) -> str | None:
    if "ratings" in parts:
        return "kto"
    if "preferences" not in parts:
        return None
    return interview.choice("Which method learns from the pairs?", PAIR_METHODS, PAIR_METHODS[0])


class Wanted(NamedTuple):
    """What is decided before it is known what fits the machine."""

    parts: Parts
    method: str | None
    rank: int

    @property
    def stages(self) -> dict[str, list[Seen]]:
        """Stages that train, and the sources of each."""
        parts, method = self.parts, self.method
        reads = {"pretrain": parts.get("pretrain"), "sft": parts.get("sft")}
        if method == "orpo":
            reads["sft"] = None
        reads[method or ""] = parts.get("preferences", parts.get("ratings"))
        return {stage: seen for stage, seen in reads.items() if stage and seen}


def _modes(fields: Fields, wanted: Wanted, here: Here, home: Path) -> dict[str, Fields]:
    """Ways of tuning that this machine has room for, the one to take first: adapters if they fit."""
    fitting: dict[str, Fields] = {}
    around = here.around
    for mode in ("lora", "qlora", "full"):
        made = _tuned(mode, wanted, here, "adapters on frozen weights")
        if around.shape is None:
            return {mode: made}
        recipe = Recipe.model_validate({"name": "draft"} | _plain({**fields, **made}))
        download = around.directory is None
        needs = needs_of(recipe, around.shape, home, download=download, named={})
        if choices.fits(needs) or (mode == "qlora" and not fitting):
            fitting[mode] = _tuned(mode, wanted, here, _room(needs))
            batches = {
                name: section.batch_size for name, section in recipe.training_sections.items()
            }
            if rows := choices.micro_batch_choice(needs, batches):
                fitting[mode]["compute"] = {"micro_batch_size": rows}
    return fitting


def _room(needs: Needs) -> str:
    most, have = max(stage.least_bytes for stage in needs.stages), needs.memory_available_bytes
    free = f"{gib(have)} are free here" if have is not None else "what is free is not known"
    short = "" if choices.fits(needs) else ": too little; take another machine or a smaller model"
    return f"takes about {gib(most)} with one row at once; {free}{short}"


def _tuned(mode: str, wanted: Wanted, here: Here, why: str) -> Fields:
    """The sections that depend on which weights are tuned."""
    tuning: Choices = {"mode": Choice(mode, why)}
    if mode != "full":
        tuning["rank"] = Choice(wanted.rank, "16 for style or format, 64 and more for reasoning")
    if mode != "full" and wanted.rank >= max(choices.RANKS.values()):
        tuning["use_rslora"] = Choice(True, "keeps the update's size steady at high rank")
    shape = here.around.shape
    small = shape is not None and shape.parameters < SMALL_PARAMETERS
    sections: Fields = {}
    for stage, seen in wanted.stages.items():
        if stage == wanted.method:
            sections["method"] = Choice(stage, f"learns from {seen[0].source.source}")
        sections[stage] = choices.training_section(
            stage, seen, full=mode == "full", small=small, context=here.context
        )
    return {"tuning": tuning, **sections}


def _plain(node: Any) -> Any:
    """Values without their reasons."""
    if isinstance(node, Choice):
        return node.value
    if isinstance(node, list):
        return [_plain(entry) for entry in node]
    return {name: _plain(entry) for name, entry in node.items()}


def _evaluation(asked: Asked, parts: Parts, interview: Interview) -> Choices:
    seen = parts.get("evaluation") or [one for one in parts["sft"] if one.kind is not None][:1]
    kinds: list[Kind] = [one.kind for one in seen if one.kind is not None]
    own = all(is_builtin(one.source.source) for one in seen)
    longest = max(one.longest_target for one in seen)
    section = choices.evaluation_section(
        kinds[0] if kinds else "text", longest, asked.databases, own
    )
    usual = choices.as_text(section["metrics"].value)
    others = [choices.as_text([name]) for names, _ in METRICS.values() for name in names]
    told = interview.choice("How are answers judged?", [*dict.fromkeys([usual, *others])], usual)
    if told != usual:
        section["metrics"] = Choice([told.strip("[]")], "as asked")
    return section
