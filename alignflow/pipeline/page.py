"""A page of HTML from a template; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader


def page_of(template: str, /, *, folder: Path = Path(__file__).parent, **values: Any) -> str:
    """A template of a folder, of this one by default, filled in; whatever it is given is escaped."""
    loader = FileSystemLoader(folder)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)
