"""Writes what a recipe may say, from its sections: docs/recipe.md and the schema that editors use.

python benchmarks/recipe_reference.py           writes both
python benchmarks/recipe_reference.py --check   fails unless both are up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from alignflow.recipe import SCHEMA_FILE, Recipe, TrainingSection

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "recipe.md"
TOP = """# Recipe

Every field of a recipe, written by `python benchmarks/recipe_reference.py` from the sections in `alignflow/recipe/`. `alignflow init MODEL DATA` drafts one; recipes to start from are in [deployments/recipes/](../deployments/recipes/).

A recipe has `base_model`, `data` and something to train; all else has a default. None is `null`. An editor with a YAML language server completes fields and shows what they mean where the first line is, with the schema's path from the file:

```yaml
# yaml-language-server: $schema=../../alignflow/recipe/recipe.schema.json
```
"""
PLACES = {
    "ModelSource": "a model",
    "DataSource": "a source of rows",
    "RewardTerm": "a reward",
    "PostgresSource": "a Postgres database",
}
"""Parts that stand in several sections, and what they are."""
UNSHOWN = ("position", "title")


def sections() -> dict[str, type[BaseModel]]:
    """Every section by the name of its class, the recipe itself among them."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Recipe]
    while waiting:
        section = waiting.pop()
        if section.__name__ not in found:
            found[section.__name__] = section
            waiting += [kind for field in section.model_fields.values() for kind in _inside(field)]
    return found


def _inside(field: Any) -> Iterator[type[BaseModel]]:
    """Sections that a field's annotation names."""
    waiting = [field.annotation]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        waiting += getattr(kind, "__args__", ())


def schema() -> dict[str, Any]:
    """The recipe's JSON schema, with the short ways of writing that its validators take."""
    made = Recipe.model_json_schema()
    defined = made["$defs"]
    for name, section in sections().items():
        place = made if section is Recipe else defined[name]
        decorators: Any = section.__pydantic_decorators__
        for validator, decorator in decorators.field_validators.items():
            for field in decorator.info.fields if validator == "_one_or_many" else ():
                place["properties"][field] = _one_or_many(place["properties"][field])
        if "_from_string" in decorators.model_validators:
            defined[name] = {"anyOf": [{"type": "string"}, defined[name]]}
    made["required"].remove("name")  # the file's name stands for it
    for field in made["properties"].values():  # one that says no more than its section has no text
        if "description" not in field and "$ref" in field:
            field["description"] = defined[field["$ref"].rpartition("/")[2]]["description"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_shown(made)}


def _one_or_many(field: dict[str, Any]) -> dict[str, Any]:
    outer = {name: value for name, value in field.items() if name not in ("type", "items")}
    many = {name: field[name] for name in ("type", "items")}
    return {**outer, "anyOf": [field["items"], many, {"type": "null"}]}


def _shown(value: Any, *, names: bool = False) -> Any:
    """Without what only the Prefect form reads; `names` are those of fields, which all stay."""
    if isinstance(value, list):
        return [_shown(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _shown(entry, names=name in ("properties", "$defs"))
        for name, entry in value.items()
        if names or name not in UNSHOWN
    }


def reference() -> str:
    """The page."""
    made = schema()
    return "\n".join([TOP, *_page("The recipe", made), *_sections(made)]).rstrip()


def _sections(made: Mapping[str, Any]) -> Iterator[str]:
    """A heading for each section, in the order of the recipe's fields; then what several share."""
    waiting = [(f"`{name}`", field) for name, field in made["properties"].items()]
    stage = _shown(TrainingSection.model_json_schema())
    done: set[str] = set()
    yield from _page("Every stage that trains", stage)
    while waiting:
        title, field = waiting.pop(0)
        for kind in _refs(field):
            if kind not in (*PLACES, *done):
                done.add(kind)
                place = made["$defs"][kind]
                trains = issubclass(sections()[kind], TrainingSection)
                yield from _page(title, place, beside=stage["properties"] if trains else {})
                inner = [
                    (f"{title[:-1]}.{name}`", one) for name, one in place["properties"].items()
                ]
                waiting = [*inner, *waiting]
    for kind, title in PLACES.items():
        yield from _page(title[0].upper() + title[1:], made["$defs"][kind])


def _page(
    title: str, place: Mapping[str, Any], beside: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[str]:
    """A section's table; fields that are as `beside` says are left out."""
    whole = place if "properties" in place else place["anyOf"][1]
    told = _told(whole)
    told += " Beside the fields of every stage that trains:" if beside else ""
    yield f"## {title}\n\n{told}\n"
    yield "| field | is | default | |"
    yield "|---|---|---|---|"
    for name, field in whole["properties"].items():
        if beside.get(name) != field:
            default = _default(field, name in whole.get("required", ()))
            text = _told(field).replace("|", "\\|")
            yield f"| `{name}` | {_kind(field)} | {default} | {text} |"
    yield ""


def _told(place: Mapping[str, Any]) -> str:
    """What a section or a field is, in one line."""
    return " ".join(place.get("description", "").split())


def _default(field: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = field.get("default", ...)
    if value is ... or isinstance(value, dict):
        return ""
    return f"`{json.dumps(value)}`"


def _refs(field: Mapping[str, Any]) -> list[str]:
    """Sections that a field's schema names."""
    inner = [field, *field.get("anyOf", ()), field.get("items", {}), field.get("allOf", [{}])[0]]
    return [entry["$ref"].rpartition("/")[2] for entry in inner if "$ref" in entry]


def _kind(field: Mapping[str, Any]) -> str:
    """Type and bounds in words."""
    if "anyOf" in field:
        kinds = (_kind(entry) for entry in field["anyOf"] if entry.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return PLACES.get(name, "section")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    if "allOf" in field:
        return _kind(field["allOf"][0])
    kind = {"object": "mapping", "string": "text", "boolean": "true or false"}
    bounds = [
        f"{sign} {field[name]}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in field
    ]
    return " ".join(
        [kind.get(field.get("type", ""), field.get("type", "anything")), ", ".join(bounds)]
    ).strip()


def main() -> int:
    """Writes the two files, or says which is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    wanted = parser.parse_args()
    files = {
        REFERENCE: reference() + "\n",
        SCHEMA_FILE: json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    if wanted.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the sections say: run `make fix`")
        return 1 if stale else 0
    for path in stale:
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
