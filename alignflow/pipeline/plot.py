"""Lines and bars as SVG, for pages that need nothing else, and as images that stand alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 54, 8, 10, 22
"""Around every plot, of whatever size."""
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


def grid(width: int, height: int, style: str = "") -> str:
    """The lines at the top, the middle and the floor of a plot of this size."""
    right, floor = width - RIGHT, height - BOTTOM
    lines = f"M{LEFT},{TOP}H{right}M{LEFT},{(floor + TOP) / 2}H{right}M{LEFT},{floor}H{right}"
    return f'<path class="grid" {style}d="{lines}"/>'


def axis_labels(width: int, height: int, up: tuple[str, str], along: tuple[str, str]) -> str:
    """What stands at the ends of both axes, the lower end first."""
    floor = height - BOTTOM
    return (
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{up[1]}</text>'
        f'<text x="{LEFT - 5}" y="{floor + 3}" text-anchor="end">{up[0]}</text>'
        f'<text x="{LEFT}" y="{height - 6}">{along[0]}</text>'
        f'<text x="{width - RIGHT}" y="{height - 6}" text-anchor="end">{along[1]}</text>'
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
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(step: int, value: float) -> str:
        x = LEFT + (step - steps[0]) / width * (right - LEFT)
        y = floor - (value - low) / span * (floor - TOP)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(at(step, value) for step, value in zip(steps, values, strict=True))
    ends = (f"{low:.3g}", f"{high:.3g}")
    lines = grid(WIDTH, HEIGHT, 'fill="none" stroke="#ccc" ')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{2 * WIDTH}" height="{2 * HEIGHT}" font-family="sans-serif" font-size="10">'
        f'{lines}<polygon class="area" points="{LEFT},{floor} {line} {right},{floor}" fill="#1f6feb" '
        'opacity="0.09"/>'
        f'<polyline class="line" points="{line}" fill="none" stroke="#1f6feb"/>'
        f"{axis_labels(WIDTH, HEIGHT, ends, (str(steps[0]), f'step {steps[-1]}'))}</svg>"
    )


def histogram(values: Sequence[int]) -> str:
    """Bars over the values from 0, at most BARS of them; the page around it styles `grid` and `bars`."""
    longest = max(values, default=0)
    width = max(-(-(longest + 1) // BARS), 1)
    counts = Counter(value // width for value in values)
    highest, bars = max(counts.values(), default=1), longest // width + 1
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
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
        f"{grid(WIDTH, HEIGHT)}{drawn}"
        f"{axis_labels(WIDTH, HEIGHT, ('0', str(highest)), ('0', f'{bars * width} tokens'))}</svg>"
    )
