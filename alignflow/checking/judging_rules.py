"""What a recipe shows to be wrong with how responses are judged: its metrics and its rewards."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignflow.checking.findings import Finding, advice, error, raised, warning
from alignflow.errors import DataError, RecipeError
from alignflow.evaluation import arguments_of, compares_responses, lower_is_better, text_metrics
from alignflow.recipe import (
    EXECUTION,
    EvaluationSection,
    MetricArguments,
    Recipe,
    RewardTerm,
    resolve_function,
)
from alignflow.stages import SECRETS_OF_OTHERS


def judging_findings(recipe: Recipe) -> Iterator[Finding]:
    """What metrics and rewards a recipe names wrongly, or cannot have on this machine."""
    section = recipe.evaluation
    yield from metric_findings("evaluation.metrics", section)
    named = {use.name for use in section.uses}
    if section.json_schema is not None:
        yield from _schema_findings(Path(section.json_schema))
        if "json_validity" not in named:
            yield advice("evaluation.json_schema", "is only used by the metric json_validity.")
    elif "json_validity" in section.metrics:
        yield advice(
            "evaluation.json_schema", "is not set, so json_validity accepts any JSON; name a file."
        )
    for name, training in recipe.training_sections.items():
        yield from _reward_findings(recipe, f"{name}.rewards", getattr(training, "rewards", ()))
    first = section.uses[0].name if section.uses else ""
    deciding = recipe.retrain and (recipe.retrain.gate.metric or first)
    if deciding and lower_is_better(deciding):
        yield error(
            "retrain.gate.metric", f"is {deciding!r}, the better the lower; the gate wants higher."
        )


def metric_findings(field: str, section: EvaluationSection) -> Iterator[Finding]:
    """Names and arguments of a section's metrics, as each declares them."""
    for use in section.uses:
        if not compares_responses(use.name):
            yield error(
                field,
                f"{use.name!r} is neither a metric of responses nor a file; "
                + did_you_mean(use.name, text_metrics()),
            )
            continue
        try:
            yield from _argument_findings(field, arguments_of(section, use))
        except RecipeError as problem:
            yield raised(problem)


def _argument_findings(field: str, arguments: MetricArguments) -> Iterator[Finding]:
    """What this machine lacks for a metric's or a reward's arguments."""
    for variable in set(arguments.variables) & set(SECRETS_OF_OTHERS):
        yield error(field, f"{variable} is kept from stages; name a variable of its own.")
    for level, text in arguments.problems():
        yield error(field, text, DataError) if level == "error" else warning(field, text)


def _schema_findings(path: Path) -> Iterator[Finding]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        text = f"{str(path)!r} cannot be read ({problem.strerror}); paths are relative to the "
        yield error("evaluation.json_schema", text + "working directory.")
        return
    except ValueError as problem:
        yield error("evaluation.json_schema", f"{str(path)!r} is not JSON: {problem}.")
        return
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as problem:
        text = f"{str(path)!r} is no JSON schema: {problem.message} at {problem.json_path}."
        yield error("evaluation.json_schema", text)


def _reward_findings(recipe: Recipe, field: str, terms: Sequence[RewardTerm]) -> Iterator[Finding]:
    for term in terms:
        if term.is_function:
            try:
                resolve_function(term.source, field)
            except RecipeError as problem:
                yield raised(problem)
        elif term.source == EXECUTION and not recipe.data.prompts:
            yield error(
                field,
                "names execution, which compares with targets, but data.prompts is empty; name "
                "prompts with a `target` each.",
            )
        yield from _argument_findings(field, term)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`did you mean x?`, or what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
