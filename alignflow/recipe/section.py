"""What every part of a recipe is: closed, immutable, its fields described and in order."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


def _declared_order(schema: dict[str, Any]) -> None:
    """Keeps the fields of a section in their written order in the Prefect form."""
    for position, entry in enumerate(schema.get("properties", {}).values()):
        entry["position"] = position


class Section(BaseModel):
    """A closed, immutable part of a recipe."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra=_declared_order,
    )
