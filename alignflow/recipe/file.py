"""Reading a recipe file: strict YAML, overrides, and every problem at once."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, SequenceNode

from alignflow.errors import RecipeError
from alignflow.recipe.nicknames import meant
from alignflow.recipe.root import Recipe

SCHEMA_FILE = Path(__file__).parent / "recipe.schema.json"
"""What an editor completes and checks a recipe by; `make fix` writes it."""
LARGEST_BYTES = 256 * 1024
DEEPEST = 20
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")

FieldPath = tuple[str | int, ...]
_untyped: Any = yaml
"""PyYAML, whose stubs leave most types open."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: `1e-5` is a number, `no` is a string."""


_untyped_loader: Any = _Loader
_untyped_loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", INTEGER, list("-+0123456789")),
    ("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789")),
):
    _untyped_loader.add_implicit_resolver(_tag, _pattern, _first)


def _float(loader: yaml.SafeLoader, node: Node) -> float:
    return float(str(loader.construct_scalar(node)))  # type: ignore[arg-type]


_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def _is_mapping(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def load_recipe(
    source: Path | str | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()
) -> Recipe:
    """The recipe in a file (YAML) or a mapping of its fields, with overrides on top.

    One that has no name in its file has the file's. Overrides are `{"dpo.beta": 0.2}`, or as the
    command line has them: `["dpo.beta=0.2"]`.

    Raises:
        RecipeError: Names every problem: file and line, field, value, what to do.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
    if isinstance(source, Mapping):
        path, places, values = Path("recipe"), {}, copy.deepcopy(dict(source))
    else:
        path = Path(source)
        places, values = _read_fields(path)
        values = {"name": name_of(path), **values}
    for override in overrides:
        places[_override(values, override)] = f"--set {override}"
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = list(_problems(path, places, values, error))
        lines += _hidden_problems(path, places, values, error)
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error


def name_of(path: Path) -> str:
    """What a recipe in this file is called where it does not say."""
    return re.sub(r"[^a-z0-9.]+", "-", path.stem.lower()).strip("-.")[:63] or "recipe"


def _read_fields(path: Path) -> tuple[dict[FieldPath, str], dict[str, Any]]:
    """Where each field of a file stands, and the values."""
    text = _read(path)
    lines: dict[FieldPath, int] = {}
    for field, line in _lines(_compose(path, text)):
        if len(field) > DEEPEST:
            raise RecipeError(f"{path}:{line}: nested too deeply to be a recipe.")
        if field in lines:
            raise RecipeError(
                f"{path}:{line}: {field[-1]} stands twice, first in line {lines[field]}; keep one."
            )
        lines[field] = line
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {_one_line(error)}") from error
    if not _is_mapping(values):
        raise RecipeError(
            f"{path}: a recipe is a mapping of fields; this is {type(values).__name__}."
        )
    return {field: f"{path}:{line}" for field, line in lines.items()}, values


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
    """The document's nodes; it has no anchors, which would be read differently than they look."""
    try:
        for event in _untyped.parse(text, Loader=_Loader):
            anchor = getattr(event, "anchor", None)
            if anchor is not None:
                line = event.start_mark.line + 1
                raise RecipeError(
                    f"{path}:{line}: anchors and aliases (&{anchor}) are not allowed; write it out."
                )
        node: Node | None = _untyped.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {_one_line(error)}") from error
    except RecursionError as error:
        raise RecipeError(f"{path} is nested too deeply to be a recipe.") from error
    if node is None:
        raise RecipeError(f"{path} is empty.")
    return node


def _lines(node: Node, prefix: FieldPath = ()) -> Iterator[tuple[FieldPath, int]]:
    """Line of each field, from 1."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            yield path, key.start_mark.line + 1
            yield from _lines(value, path)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield (*prefix, index), value.start_mark.line + 1
            yield from _lines(value, (*prefix, index))


def _override(values: dict[str, Any], override: str) -> FieldPath:
    """Sets one field in `values` and returns its path."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"--set {override}: write it as path.to.field=value, e.g. dpo.beta=0.2.")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: {_one_line(error)}") from error
    path = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
    place: Any = values
    for section in path[:-1]:
        if _is_mapping(place) and place.get(str(section)) is None:
            place[str(section)] = {}
        place = _entry(place, section, override)
        if not (_is_mapping(place) or _is_list(place)):
            raise RecipeError(f"--set {override}: {section} is {place!r}, not a section.")
    last = path[-1]
    if _is_list(place):
        _entry(place, last, override)
        place[int(last)] = value
    elif _is_mapping(place):
        place[str(last)] = value
    return path


def _entry(place: Any, part: str | int, override: str) -> Any:
    try:
        return place[part if _is_list(place) else str(part)]
    except (KeyError, IndexError, TypeError) as error:
        raise RecipeError(
            f"--set {override}: {part} is no place in a list of {len(place)}; count from 0."
        ) from error


def _problems(
    path: Path, places: Mapping[FieldPath, str], values: Any, error: ValidationError
) -> Iterator[str]:
    by_field: dict[FieldPath, list[Any]] = {}
    for problem in error.errors(include_url=False):
        by_field.setdefault(_written(problem, values), []).append(problem)
    for problem in by_field.pop((), []):
        yield from _lines_about_the_whole(path, places, problem)
    for field, problems in by_field.items():
        where = _where(path, places, field, problems[0]["msg"])
        name = ".".join(str(part) for part in field) or "recipe"
        advice = " or ".join(
            dict.fromkeys(_what_to_do(problem, field).rstrip(".") for problem in problems)
        )
        yield f"{where}: {name}{_shown(problems[0])}: {advice}{'' if advice[-1] == '?' else '.'}"


def _hidden_problems(
    path: Path, places: Mapping[FieldPath, str], values: Any, error: ValidationError
) -> list[str]:
    """Problems of how sections fit, which pydantic does not look for while a field is wrong."""
    wrong = {_written(problem, values) for problem in error.errors(include_url=False)}
    absent = {name for name in Recipe.model_fields if (name,) in wrong} - {"name", "seed"}
    if () in wrong or any(field[0] in {"data", *absent} for field in wrong):
        return []  # what is pruned below would itself look like a problem
    pruned = copy.deepcopy(values)
    for field in sorted(wrong, key=len, reverse=True):
        _remove(pruned, field)
    pruned.setdefault("name", "unnamed")
    try:
        Recipe.model_validate(pruned)
    except ValidationError as rest:
        return [
            line
            for problem in rest.errors(include_url=False)
            if not problem["loc"]
            for line in _lines_about_the_whole(path, places, problem)
        ]
    return []


def _lines_about_the_whole(
    path: Path, places: Mapping[FieldPath, str], problem: Any
) -> Iterator[str]:
    """A line for each way in which sections contradict each other."""
    for text in _what_to_do(problem, ()).splitlines():
        yield f"{_where(path, places, (), text)}: recipe: {text.rstrip('.')}."


def _remove(values: Any, field: FieldPath) -> None:
    place = values
    for part in field[:-1]:
        place = place[part]
    if _is_mapping(place):
        place.pop(str(field[-1]), None)


def _written(problem: Any, values: Any) -> FieldPath:
    """Path of a problem as far as it stands in the file, without pydantic's own parts."""
    place: Any = values
    field: list[str | int] = []
    for part in problem["loc"]:
        indexes = range(len(place)) if _is_list(place) else ()
        if part not in (place if _is_mapping(place) else indexes):
            break
        field.append(part)
        place = place[part]
    if problem["type"] == "missing" and len(field) == len(problem["loc"]) - 1:
        field.append(problem["loc"][-1])
    return tuple(field)


def _where(path: Path, places: Mapping[FieldPath, str], field: FieldPath, message: str) -> str:
    """File and line of a field, of its section, or of the first field that the message names."""
    for length in range(len(field), 0, -1):
        if field[:length] in places:
            return places[field[:length]]
    named = (places.get((word,)) for word in re.findall(r"[a-z_]+", message))
    return next((place for place in named if place), str(path)) if not field else str(path)


def _shown(problem: Any) -> str:
    if problem["type"] in ("extra_forbidden", "missing") or isinstance(problem["input"], dict):
        return ""
    return f" is {problem['input']!r}"[:120]


def _what_to_do(problem: Any, place: FieldPath) -> str:
    if problem["type"] == "extra_forbidden":
        known, name = _fields_at(place[:-1]), str(place[-1])
        close = difflib.get_close_matches(name, known, n=1)
        field = meant(name, known, _places_of(name)) or (close[0] if close else None)
        told = f"did you mean {field}?" if field else f"there are {', '.join(known)}."
        return f"no such field; {told}"
    if problem["type"] == "missing":
        return "is missing; add it."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        close = difflib.get_close_matches(str(problem["input"]), known, n=1)
        message += f"; did you mean {close[0]}?" if close else ""
    return message + ("" if message.endswith((".", "?")) else ".")


def _fields_at(place: FieldPath) -> list[str]:
    """Fields of the section at `place`."""
    section: type[BaseModel] = Recipe
    for part in place:
        if isinstance(part, int) or part not in section.model_fields:
            continue
        section = _section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _places_of(name: str) -> list[str]:
    """Every place of the recipe that has a field of this name."""
    sections = {
        section: _section_in(field.annotation) for section, field in Recipe.model_fields.items()
    }
    inside = [
        f"{section}.{name}"
        for section, kind in sections.items()
        if kind and name in kind.model_fields
    ]
    return [name, *inside] if name in sections else inside


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section_in(part))), None)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}: {problem}." if mark else f"{problem}."
