"""A drafted recipe as YAML: short, a reason beside each choice."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from alignflow.drafting.choices import Choice, as_text

WIDTH = 80
Node = Choice | list[Choice] | Mapping[str, "Node"]


def written(head: list[str], fields: Mapping[str, Node]) -> str:
    """The file's text: comments above, then the fields."""
    return "\n".join([*(f"# {line}" for line in head), *_lines(fields, 0)]) + "\n"


def _lines(fields: Mapping[str, Node], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, node in fields.items():
        if isinstance(node, Choice):
            yield from _line(f"{indent}{name}: {as_text(node.value)}", node.why, indent)
        elif isinstance(node, list):
            yield f"{indent}{name}:"
            for entry in node:
                yield from _line(f"{indent}- {as_text(entry.value)}", entry.why, indent)
        else:
            yield f"{indent}{name}:"
            yield from _lines(node, depth + 1)


def _line(line: str, why: str, indent: str) -> Iterator[str]:
    """A field and its reason: beside it where there is room, else above it."""
    beside = f"{line}  # {why}"
    if len(beside) <= WIDTH:
        yield beside
        return
    yield from textwrap.wrap(
        why, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
    yield line
