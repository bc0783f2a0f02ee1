"""Lines and bars as SVG, for pages that need nothing else, and as images that stand alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 150, 54, 10, 22
TITLE_HEIGHT, COLUMNS = 16, 2
BARS = 30
LIGHT = {"ground": "#ffffff", "ink": "#5b6472", "line": "#2f5fd0"}
DARK = {"ground": "#1b212b", "ink": "#a3acba", "line": "#7fa2ff"}
"""An image has its own ground: it cannot know the theme of the page around it, the browser's it can."""


def plots_alone(plots: Mapping[str, str]) -> str:
    """Line plots by name in one image of two columns, readable in light and dark themes."""
    cell, columns = HEIGHT + TITLE_HEIGHT, min(COLUMNS, len(plots))
    width, height = columns * WIDTH, cell * math.ceil(len(plots) / columns)
    drawn = [
        f'<svg x="{number % columns * WIDTH}" y="{number // columns * cell}" width="{WIDTH}" '
        f'height="{cell}"><text class="name" x="{LEFT}" y="12">{escape(name)}</text>'
        f'<svg y="{TITLE_HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}">{plot}</svg></svg>'
        for number, (name, plot) in enumerate(plots.items())
    ]
    style = (
        "text{font:10px sans-serif} .name{font-weight:bold} .grid{opacity:.35}"
        f"{_theme(LIGHT)} @media (prefers-color-scheme:dark){{{_theme(DARK)}}}"
    )
    ground = f'<rect class="ground" width="{width}" height="{height}" rx="4"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{2 * width}" height="{2 * height}"><style>{style}</style>{ground}{"".join(drawn)}</svg>'
    )


def _theme(colours: Mapping[str, str]) -> str:
    ground, ink, line = colours.values()
    return (
        f".ground{{fill:{ground}}} text{{fill:{ink}}} .grid{{stroke:{ink}}} "
        f".line{{stroke:{line}}} .area{{fill:{line}}}"
    )


def line_plot(points: Mapping[int, float]) -> str:
    """A line with the ends of both axes labelled, in classes that the page around it styles.

    What is not finite is left out; nothing is "".

    Args:
        points: Step to value.
    """
    steps = sorted(step for step, value in points.items() if math.isfinite(value))
    if not steps:
        return ""
    values = [points[step] for step in steps]
    low, high = min(values), max(values)
    span, width = (high - low) or 1.0, (steps[-1] - steps[0]) or 1
    right, floor, top = WIDTH - 8, HEIGHT - BOTTOM, TOP

    def at(step: int, value: float) -> str:
        x = LEFT + (step - steps[0]) / width * (right - LEFT)
        y = floor - (value - low) / span * (floor - top)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(at(step, value) for step, value in zip(steps, values, strict=True))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{2 * WIDTH}" height="{2 * HEIGHT}" font-family="sans-serif" font-size="10">'
        f'<path class="grid" fill="none" stroke="#ccc" '
        f'd="M{LEFT},{top}H{right}M{LEFT},{(floor + top) / 2}H{right}M{LEFT},{floor}H{right}"/>'
        f'<polygon class="area" points="{LEFT},{floor} {line} {right},{floor}" fill="#1f6feb" '
        'opacity="0.09"/>'
        f'<polyline class="line" points="{line}" fill="none" stroke="#1f6feb"/>'
        f'<text x="{LEFT - 5}" y="{top + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 5}" y="{floor + 3}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{steps[0]}</text>'
        f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">step {steps[-1]}</text></svg>'
    )


def histogram(values: Sequence[int]) -> str:
    """Bars over the values from 0, at most BARS of them; the page around it styles `grid` and `bars`."""
    longest = max(values, default=0)
    width = max(-(-(longest + 1) // BARS), 1)
    counts = Counter(value // width for value in values)
    highest, bars = max(counts.values(), default=1), longest // width + 1
    right, floor = WIDTH - 8, HEIGHT - BOTTOM
    step = (right - LEFT) / bars
    drawn = "".join(
        f'<rect class="bars" x="{LEFT + place * step:.1f}" width="{max(step - 1, 0.5):.1f}" '
        f'y="{floor - count / highest * (floor - TOP):.1f}" '
        f'height="{count / highest * (floor - TOP):.1f}"><title>{place * width} to '
        f"{(place + 1) * width - 1}: {count}</title></rect>"
        for place, count in sorted(counts.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<path class="grid" d="M{LEFT},{TOP}H{right}M{LEFT},{(floor + TOP) / 2}H{right}'
        f'M{LEFT},{floor}H{right}"/>{drawn}'
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{highest}</text>'
        f'<text x="{LEFT - 5}" y="{floor + 3}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">0</text>'
        f'<text x="{right}" y="{HEIGHT - 6}" text-anchor="end">{bars * width} tokens</text></svg>'
    )
