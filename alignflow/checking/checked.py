"""One check of one recipe file, in order of what it needs: nothing, file names, headers, rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from alignflow.checking.architecture import (
    Shape,
    adapter_findings,
    context_findings,
    target_findings,
)
from alignflow.checking.findings import Finding, error, exit_code, raise_errors, raised, warning
from alignflow.checking.gguf_shape import shape_here
from alignflow.checking.merging import adapter_merge_findings, merge_findings
from alignflow.checking.model_files import model_directory, read_config, refusals
from alignflow.checking.needs import Needs, need_findings, needs_of
from alignflow.checking.notification import notification_findings
from alignflow.checking.rows import SourceRows, is_elsewhere, row_findings, source_findings
from alignflow.checking.rules import recipe_findings
from alignflow.checking.template import Example, beyond_embedding, template_findings
from alignflow.checking.trial import trial_findings
from alignflow.data import (
    has_tokenizer,
    load_template,
    special_tokens,
    template_in_force,
    vocabulary_problem,
)
from alignflow.errors import AlignflowError
from alignflow.evaluation import declared
from alignflow.files import digest_directory
from alignflow.recipe import Recipe, is_gguf, is_hub_id, load_recipe
from alignflow.settings import resolve_home
from alignflow.stages import Record

SMALL_PARAMETERS = 100_000_000


class Check(Record):
    """All that is known of a recipe before it runs."""

    file: str
    """Where it was read; its name where it was not read from a file."""
    recipe: str | None = None
    stages: list[str] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list)
    base_model: Shape | None = None
    example: Example | None = None
    """Of the chat template in force."""
    rows: list[SourceRows] = Field(default_factory=list)
    needs: Needs | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0, or the code that a run would end with."""
        return exit_code(self.findings)

    @property
    def ok(self) -> bool:
        """Whether nothing would stop a run."""
        return self.exit_code == 0


class Surroundings(Record):
    """What a recipe finds on this machine without reading rows or weights."""

    directory: Path | None
    shape: Shape | None
    named: dict[str, Shape]
    """Of the models beside the base, by field of the recipe."""
    findings: list[Finding]


def check_file(
    path: Path, overrides: Sequence[str] = (), *, home: Path, full: bool = False
) -> Check:
    """As `check`, of a recipe file with `overrides` such as `path.to.field=value`."""
    started = time.monotonic()
    try:
        recipe = load_recipe(path, overrides)
    except AlignflowError as problem:
        lines = problem.message.splitlines()
        checked = Check(file=str(path), findings=[error("", line, type(problem)) for line in lines])
    else:
        checked = check(recipe, full=full, home=home)
    return checked.model_copy(update={"file": str(path), "seconds": time.monotonic() - started})


def check(recipe: Recipe, *, full: bool = False, home: Path | str | None = None) -> Check:
    """What is wrong with a recipe and what could be better, without loading a model.

    Nothing is raised for what is wrong: `ok` and `findings` say it.

    Args:
        recipe: From `load_recipe`.
        full: Read every row, not a sample of 1,000 per source.
        home: Where results would go; None is ALIGNFLOW_HOME or `.alignflow`.
    """
    started, place = time.monotonic(), resolve_home(home)
    around = surroundings(recipe, place)
    findings, rows, needs, example = list(around.findings), [], None, None
    if exit_code(findings) == 0 and around.directory is not None:
        findings += trial_findings(recipe, around.directory, place)
    if exit_code(findings) == 0:
        example, seen = _template_seen(recipe, around)
        findings += seen
        if exit_code(seen) == 0:
            context = around.shape.context if around.shape else None
            rows, judged = row_findings(recipe, around.directory, context, home=place, full=full)
            findings += judged
    findings += notification_findings(recipe)
    if around.shape is not None:
        download = around.directory is None
        needs = needs_of(recipe, around.shape, place, download=download, named=around.named)
        findings += need_findings(needs, guessed=around.shape.from_name)
    return Check(
        file=recipe.name,
        recipe=recipe.name,
        stages=recipe.stages if recipe.training_sections else ["decide"],
        findings=findings,
        base_model=around.shape,
        example=example,
        rows=rows,
        needs=needs,
        seconds=time.monotonic() - started,
    )


def surroundings(recipe: Recipe, home: Path) -> Surroundings:
    """What can be said of a recipe in a second: rules, file names, headers."""
    directory, shape, findings = None, None, []
    try:
        directory = model_directory(recipe.base_model, home)
    except AlignflowError as problem:
        findings.append(raised(problem))
    else:
        is_local = directory is not None and not is_hub_id(recipe.base_model.source)
        findings += refusals(directory) if directory is not None and is_local else []
        shape, problems = shape_here(recipe.base_model, directory)
        findings += problems
    small = shape is not None and shape.parameters < SMALL_PARAMETERS
    findings += recipe_findings(recipe, small_model=small)
    findings += source_findings(recipe)
    if shape is not None:
        findings += [*target_findings(recipe, shape), *context_findings(recipe, shape)]
    if shape is not None and directory is not None:
        findings += merge_findings(recipe, directory, shape)
        findings += beyond_embedding(directory, recipe.base_model, shape.vocabulary)
    if recipe.tuning.init_adapter:
        findings += _adapter_seen(recipe, directory, shape)
    named, problems = _named_models(recipe, directory, home)
    return Surroundings(
        directory=directory, shape=shape, named=named, findings=[*findings, *problems]
    )


def preflight(recipe: Recipe, name: str, home: Path) -> None:
    """Refuses what a run would stumble over later, before anything is started.

    Raises:
        AlignflowError: Names everything that is wrong.
    """
    around = surroundings(recipe, home)
    raise_errors(name, around.findings)
    if around.directory is not None:
        raise_errors(name, trial_findings(recipe, around.directory, home))


def _adapter_seen(recipe: Recipe, directory: Path | None, shape: Shape | None) -> list[Finding]:
    assert recipe.tuning.init_adapter is not None
    adapter = Path(recipe.tuning.init_adapter).expanduser().absolute()
    noted = (adapter / "base_model.json").is_file()
    digest = _digest(recipe, directory) if directory is not None and noted else None
    findings = [
        *(refusals(adapter, "tuning.init_adapter") if adapter.is_dir() else []),
        *adapter_findings(recipe.tuning.init_adapter, digest, shape),
    ]
    if directory is not None and recipe.merge is not None and exit_code(findings) == 0:
        findings += adapter_merge_findings(directory, adapter)
    return findings


def _named_models(
    recipe: Recipe, base: Path | None, home: Path
) -> tuple[dict[str, Shape], list[Finding]]:
    """Shapes of the models beside the base by field of the recipe, and what is wrong with them."""
    shapes, findings = dict[str, Shape](), list[Finding]()
    for stage, section in recipe.training_sections.items():
        for name, model in section.models().items():
            field = f"{stage}.{name}"
            try:
                directory = model_directory(model, home, field)
                shape, problems = shape_here(model, directory, field)
                findings += problems
                if directory is not None and not is_hub_id(model.source):
                    findings += refusals(directory, field)
                if directory is not None and base is not None and exit_code(findings) == 0:
                    findings += _compared(recipe, field, directory, base)
            except AlignflowError as problem:
                findings.append(raised(problem))
                continue
            shapes |= {field: shape} if shape is not None else {}
    return shapes, findings


def _compared(recipe: Recipe, field: str, directory: Path, base: Path) -> Iterator[Finding]:
    """Whether a model has the base's tokens, which are all that a stage gives it to read."""
    both = [place for place in (base, directory) if has_tokenizer(place)]
    configs = [read_config(place / "tokenizer_config.json") for place in both]
    ends = [special_tokens(config).get("eos_token") for config in configs]
    if problem := vocabulary_problem(base, directory):
        yield error(field, problem)
    elif len(both) < 2:
        yield warning(field, "its tokens are not compared: there is no tokenizer.json.")
    elif ends[0] != ends[1]:
        yield warning(field, f"ends a response with {ends[1]!r}, the base model with {ends[0]!r}.")
    else:
        ours, theirs = template_in_force(base, recipe.base_model), load_template(directory)
        if ours and theirs and not ours.source.endswith(theirs.source):
            yield warning(field, "has another chat template than the one in force, which it reads.")


def _digest(recipe: Recipe, directory: Path) -> str:
    """The base model's, as stages record it: its content's, or what its directory is named by."""
    if is_hub_id(recipe.base_model.source) or is_gguf(recipe.base_model.source):
        return directory.name
    return digest_directory(directory)


def _template_seen(recipe: Recipe, around: Surroundings) -> tuple[Example | None, list[Finding]]:
    if around.directory is None:
        return None, []
    read = [*recipe.data.preferences, *recipe.data.evaluation]
    needed = any(not is_elsewhere(source.source) for source in read)
    named = {use.name for use in recipe.evaluation.uses}
    readers = [name for name, about in declared().items() if name in named and about.reads_calls]
    return template_findings(
        around.directory, recipe.base_model, needed=needed, call_readers=readers
    )
