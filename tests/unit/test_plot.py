"""Curves that stand alone in a page of which they know nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from alignflow.pipeline.plot import DARK, LIGHT, line_plot, plots_alone

LEGIBLE_TEXT, VISIBLE_LINE = 4.5, 3.0
"""What WCAG asks for."""


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_curves_are_readable_in_a_light_and_in_a_dark_theme(theme: dict[str, str]) -> None:
    assert contrast(theme["ink"], theme["ground"]) > LEGIBLE_TEXT
    assert contrast(theme["line"], theme["ground"]) > VISIBLE_LINE
    image = plots_alone({"loss": line_plot({1: 2.0, 2: 1.0})})
    assert all(colour in image for colour in theme.values())


def test_every_curve_has_its_name_and_its_place_in_one_image() -> None:
    curves = {"loss": {1: 2.0, 2: 1.0, 3: 0.5}, "a<b": {1: 0.1, 2: 0.2}, "eval_loss": {1: 1, 2: 2}}
    image = ET.fromstring(plots_alone({name: line_plot(points) for name, points in curves.items()}))
    names = [text.text for text in image.iter() if text.get("class") == "name"]
    assert names == list(curves)
    cells = [cell for cell in image if cell.tag.endswith("svg")]
    assert len({(cell.get("x"), cell.get("y")) for cell in cells}) == len(curves)
