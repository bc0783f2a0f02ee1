"""What metrics are, as each declares in its own file: `ABOUT = MetricAbout(...)`.

Whoever checks a recipe or shows a report reads this, and loads none of the libraries that the
metric's code needs: of a file only `ABOUT`, and what it names, is run.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from alignflow.recipe import MetricArguments

OURS = Path(__file__).parent / "metrics"
SAMPLED = "sampled_"
"""Before the name of a figure of responses drawn at a temperature."""
LEADING_NAME = "accuracy"
"""Second name of the figure of a recipe's first metric, unless its file says another."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that a metric gives of a model."""

    name: str
    better: Literal["higher", "lower"] | None = "higher"
    """Direction; None is neither."""
    lowest: float = 0.0
    highest: float = 1.0
    is_rate: bool = False
    """Whether it is a share of prompts, which is shown in per cent."""
    place: float = math.inf
    """Among the figures that are shown first, from 1; without one it stands below them."""


@dataclass(frozen=True, kw_only=True)
class MetricAbout(Figure):
    """A metric; as a figure, that under its own name."""

    compares_responses: bool = True
    """Whether it takes responses and targets, so that a recipe may name it. Others take numbers."""
    judges_form: bool = False
    """Whether it looks at the form of a response alone, which small adapters learn."""
    reads_calls: bool = False
    """Whether it reads tool calls in responses, so that the chat template must write them legibly."""
    leading_name: str = LEADING_NAME
    also: tuple[Figure, ...] = ()
    """Further figures, or names under which its own stands in reports."""
    arguments: type[MetricArguments] = MetricArguments
    """What a recipe may tell it; its `_compute` takes the fields by name."""


def declared() -> Mapping[str, MetricAbout]:
    """Our metrics by name."""
    return _declared_in(OURS)


@lru_cache(maxsize=8)
def _declared_in(folder: Path) -> dict[str, MetricAbout]:
    return {path.stem: read_about(path) for path in sorted(folder.glob("[a-z]*.py"))}


def read_about(path: Path) -> MetricAbout:
    """The declaration in a metric's file.

    Raises:
        ValueError: There is none, or it has another name than the file.
    """
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    defining = {name: statement for statement in statements for name in _defined(statement)}
    needed: set[ast.stmt] = set()
    names = ["ABOUT"]
    while names:
        statement = defining.get(names.pop())
        if statement is not None and statement not in needed:
            needed.add(statement)
            names += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    module = ast.Module([statement for statement in statements if statement in needed], [])
    scope: dict[str, object] = {"__name__": path.stem}
    exec(compile(module, str(path), "exec"), scope)
    about = scope.get("ABOUT")
    if not isinstance(about, MetricAbout) or about.name != path.stem:
        raise ValueError(
            f"{path} declares no metric: write ABOUT = MetricAbout(name={path.stem!r})"
        )
    return about


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement at the top of a file defines."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def text_metrics() -> tuple[str, ...]:
    """Those of ours that compare responses with targets: what a recipe may name."""
    return tuple(name for name, about in declared().items() if about.compares_responses)


def leading_figures(*groups: str) -> list[str]:
    """Figures that are shown first, in their order: of the first metric, then those with a place.

    Args:
        groups: Of prompts beside the main ones, whose figures of the first metric are among them.
    """
    names = dict.fromkeys(declared()[metric].leading_name for metric in text_metrics())
    variants = ["", SAMPLED, *(f"{group}_" for group in groups)]
    placed = sorted((f for f in _figures() if f.place < math.inf), key=lambda f: f.place)
    return [f"{v}{name}" for v in variants for name in names] + [figure.name for figure in placed]


def is_rate(name: str, value: float | None = None) -> bool:
    """Whether a figure of a report is a share, by its declaration.

    What no metric of ours declares is judged by its last word, as in `my_rate` or `own_accuracy`.

    Args:
        name: With the group or the kind of responses before it, as in `sampled_exact_match`.
        value: A value outside of 0 to 1 is none.
    """
    if value is not None and not 0 <= value <= 1:
        return False
    figure = _figure_of(name)
    if figure is not None:
        return figure.is_rate
    words = {f.name.rpartition("_")[2] for f in _figures() if f.is_rate} | {LEADING_NAME}
    return name.endswith(tuple(words))


def lower_is_better(name: str) -> bool:
    """Whether a figure of a report is the better the lower it is, by its declaration."""
    figure = _figure_of(name)
    return figure is not None and figure.better == "lower"


def _figures() -> list[Figure]:
    return [figure for about in declared().values() for figure in (about, *about.also)]


def _figure_of(name: str) -> Figure | None:
    """The declared figure of which `name` is a variant, such as that of a group."""
    variants = [f for f in _figures() if name == f.name or name.endswith(f"_{f.name}")]
    return max(variants, key=lambda figure: len(figure.name), default=None)
