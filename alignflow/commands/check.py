"""`alignflow check`: what is wrong with a recipe, before it costs anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from alignflow.checking import Check, SourceRows, check_file, gib
from alignflow.commands.options import Home, Json, Overrides
from alignflow.pipeline import plain_console
from alignflow.recipe import load_recipe
from alignflow.settings import resolve_home

if TYPE_CHECKING:
    from alignflow.deciding import Estimate

STYLES = {"error": "bold red", "warning": "yellow", "advice": "cyan", "note": "dim"}


def check(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files (YAML).")
    ],
    overrides: Overrides = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every row, not a sample of 1,000 per source.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Says what is wrong with RECIPE, and what could be better, without loading a model.

    Checks the recipe's fields, the base model's files and architecture, the chat template, rows and
    their lengths, and what memory and disk a run needs. The exit code is the one that a run would
    fail with (64 recipe, 65 data, 66 adapter, 71 disk), 0 if nothing is wrong.

    \b
    Examples:
      alignflow check deployments/recipes/quickstart.yaml
      alignflow check my.yaml --set tuning.rank=64 --full
      alignflow check deployments/recipes/*.yaml --json
    """  # noqa: D301 (click's mark)
    place = resolve_home(home)
    checks = [check_file(path, overrides or [], home=place, full=full) for path in recipes]
    estimates = {one.file: _estimate(one, overrides or [], place) for one in checks}
    code = min((checked.exit_code for checked in checks if checked.exit_code), default=0)
    if as_json:
        each = [
            {
                **one.model_dump(mode="json"),
                "exit_code": one.exit_code,
                **(
                    {"decide": told.model_dump(mode="json")}
                    if (told := estimates[one.file])
                    else {}
                ),
            }
            for one in checks
        ]
        typer.echo(json.dumps({"schema": 1, "ok": code == 0, "recipes": each}, indent=2))
    else:
        out, problems = plain_console(), plain_console(stderr=True)
        for checked in checks:
            _print(checked, out, problems, estimates[checked.file])
    raise typer.Exit(code)


def _estimate(checked: Check, overrides: list[str], home: Path) -> Estimate | None:
    """What a decision would take, of a recipe that asks for one and has nothing wrong.

    Raises:
        DataError: Its questions or documents cannot be read.
    """
    if not checked.ok or checked.base_model is None:
        return None
    recipe = load_recipe(checked.file, overrides)
    if recipe.decide is None:
        return None
    from alignflow.deciding import estimate

    return estimate(recipe, home, checked.base_model.parameters)


def _print(checked: Check, out: Console, problems: Console, decision: Estimate | None) -> None:
    """Errors go to stderr, all else to stdout."""
    if checked.recipe is not None:
        out.print(Text.assemble((checked.recipe, "bold"), f"  {' → '.join(checked.stages)}"))
    for line in [
        *_model_lines(checked),
        *_example_lines(checked),
        *(_source_line(rows) for rows in checked.rows),
        *_need_lines(checked),
        *([f"decide      {line}" for line in decision.text.split("; ")] if decision else []),
    ]:
        out.print(f"  {line}")
    for level, style in STYLES.items():
        console = problems if level == "error" else out
        for finding in checked.findings:
            if finding.level == level:
                console.print(Text.assemble("  ", (f"{level:<8}", style), finding.line))
    errors = sum(finding.level == "error" for finding in checked.findings)
    verdict = f"{errors} to repair" if errors else "nothing is wrong"
    out.print(f"  {checked.file}: {verdict} ({checked.seconds:.1f} s)")


def _model_lines(checked: Check) -> list[str]:
    shape = checked.base_model
    if shape is None:
        return []
    if shape.from_name:
        return [f"base model  about {_count(shape.parameters)} parameters, by its name"]
    context = f", context {shape.context} tokens" if shape.context else ""
    layers = f", {shape.layers} layers" if shape.layers else ""
    made_of = f", dequantized from {shape.dequantized_from}" if shape.dequantized_from else ""
    what = f"{shape.model_type}, {_count(shape.parameters)} parameters"
    return [f"base model  {what}{layers}{context}{made_of}"]


def _example_lines(checked: Check) -> list[str]:
    """The chat template on a question and its answer, as text with escapes, the answer after `|`."""
    if checked.example is None:
        return []
    contract = checked.example.contract
    lines = [
        f"template    {_escaped(checked.example.prompt)} | {_escaped(checked.example.response)}"
    ]
    if contract is None:
        return lines
    ends = ", ".join(contract.closes)
    told = (
        f"loss after |; {ends} ends a response" if ends else "loss after |; nothing ends a response"
    )
    if contract.answer_follows:
        told += f"; the answer follows {_escaped(contract.answer_follows)}"
    return [*lines, f"            {told}"]


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n")


def _source_line(rows: SourceRows) -> str:
    what = (
        f"sample of {rows.looked_at:,} of {rows.read:,}" if rows.sampled else f"all {rows.read:,}"
    )
    trained = rows.kept - rows.held_out
    kept = f"about {rows.expected:,} kept" if rows.sampled else f"{trained:,} kept"
    kept += f", {rows.held_out:,} held out" if rows.held_out else ""
    dropped = ", ".join(f"{reason} {count}" for reason, count in rows.dropped.items())
    line = f"{rows.part:<12}{rows.source}  {what} rows, {kept}"
    line += f", dropped: {dropped}" if dropped else ""
    if rows.longest_tokens is not None:
        line += f"; tokens median {rows.median_tokens}, 95 % {rows.p95_tokens}, longest {rows.longest_tokens}"
        line += f" of {rows.limit}" if rows.limit else ""
    return line


def _need_lines(checked: Check) -> list[str]:
    needs = checked.needs
    if needs is None:
        return []
    share = needs.trainable_parameters / max(needs.parameters, 1)
    lines = [f"trains      {_count(needs.trainable_parameters)} parameters ({share:.2%})"]
    for stage in needs.stages:
        lines.append(
            f"{stage.stage:<12}memory about {gib(stage.least_bytes)} with one row per forward pass, "
            f"{gib(stage.first_bytes)} with {stage.first_rows}"
        )
    have = needs.memory_available_bytes
    lines.append(
        f"here        {gib(have) if have is not None else 'unknown'} memory free ({needs.device}), "
        f"disk about {gib(needs.disk_bytes)} of {gib(needs.disk_free_bytes)} free"
    )
    return lines


def _count(number: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return str(number)
