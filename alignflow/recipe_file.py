"""Reading a recipe file: strict YAML, overrides, and every problem at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from alignflow.errors import RecipeError
from alignflow.recipe import Recipe

LARGEST_BYTES = 256 * 1024
DEEPEST = 20
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")

FieldPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: `1e-5` is a number, `no` is a string."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", INTEGER, list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_tag, _pattern, _first)


def _float(loader: yaml.SafeLoader, node: Node) -> float:
    return float(str(loader.construct_scalar(node)))  # type: ignore[arg-type]


_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `path.to.field=value` overrides on top.

    Raises:
        RecipeError: Names every problem: file and line, field, value, what to do.
    """
    text = _read(path)
    node = _compose(path, text)
    lines = dict(_lines(node))
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of fields; this is {type(values).__name__}."
        )
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(_problems(path, lines, error))) from error


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise RecipeError(
                f"{path} has {path.stat().st_size} bytes; a recipe has at most {LARGEST_BYTES}."
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: no such recipe file. Shipped ones are in deployments/recipes/."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from error


def _compose(path: Path, text: str) -> Node:
    """The document's nodes, checked for what would be read differently than it looks."""
    try:
        for event in yaml.parse(text, Loader=_Loader):
            anchor = getattr(event, "anchor", None)
            if anchor is not None:
                line = event.start_mark.line + 1
                raise RecipeError(
                    f"{path}:{line}: anchors and aliases (&{anchor}) are not allowed; write it out."
                )
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {_one_line(error)}") from error
    except RecursionError as error:
        raise RecipeError(f"{path} is nested too deeply to be a recipe.") from error
    if node is None:
        raise RecipeError(f"{path} is empty.")
    _refuse_duplicates(path, node, 0)
    return node


def _refuse_duplicates(path: Path, node: Node, depth: int) -> None:
    if depth > DEEPEST:
        raise RecipeError(f"{path}:{node.start_mark.line + 1}: nested too deeply to be a recipe.")
    if isinstance(node, MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise RecipeError(
                    f"{path}:{line}: {name} stands twice, first in line {seen[name]}; keep one."
                )
            seen[name] = line
            _refuse_duplicates(path, value, depth + 1)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            _refuse_duplicates(path, value, depth + 1)


def _lines(node: Node, prefix: FieldPath = ()) -> Iterator[tuple[FieldPath, int]]:
    """Line of each field, from 1."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            path = (*prefix, key.value if isinstance(key, ScalarNode) else str(key))
            yield path, key.start_mark.line + 1
            yield from _lines(value, path)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield (*prefix, index), value.start_mark.line + 1
            yield from _lines(value, (*prefix, index))


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"--set {override}: write it as path.to.field=value, e.g. dpo.beta=0.2.")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: {_one_line(error)}") from error
    *sections, field = name.strip().split(".")
    place = values
    for section in sections:
        inner = place.get(section)
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {section} is {inner!r}, not a section.")
        place = inner
    place[field] = value


def _problems(path: Path, lines: dict[FieldPath, int], error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        place: FieldPath = problem["loc"]
        line = next(
            (lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None
        )
        where = f"{path}:{line}" if line else str(path)
        field = ".".join(str(part) for part in place) or "recipe"
        yield f"{where}: {field}{_shown(problem)}: {_what_to_do(problem, place)}"


def _shown(problem: Any) -> str:
    if problem["type"] in ("extra_forbidden", "missing") or isinstance(problem["input"], dict):
        return ""
    return f" is {problem['input']!r}"[:120]


def _what_to_do(problem: Any, place: FieldPath) -> str:
    if problem["type"] == "extra_forbidden":
        known = _fields_at(place[:-1])
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
        return f"no such field; {meant}"
    if problem["type"] == "missing":
        return "is missing; add it."
    message = problem["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:] + ("" if message.endswith(".") else ".")


def _fields_at(place: FieldPath) -> list[str]:
    """Fields of the section at `place`."""
    section: type[BaseModel] = Recipe
    for part in place:
        if isinstance(part, int) or part not in section.model_fields:
            continue
        section = _section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}: {problem}." if mark else f"{problem}."
