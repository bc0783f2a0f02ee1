"""Several lines over steps in one plot: as SVG for a page, and in a row of blocks for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from alignflow.pipeline.plot import BOTTOM, LEFT, RIGHT, TOP, axis_labels, grid

WIDTH, HEIGHT = 460, 220
DASHES = ("none", "6 3", "2 3", "8 3 2 3")
"""Of the lines in turn, so that they differ without colours too."""
COLOURS = 6
BLOCKS = "▁▂▃▄▅▆▇█"
BLOCKS_WIDE = 24


def overlay_plot(lines: Sequence[Mapping[int, float]]) -> str:
    """The lines on common axes, line n in the class `line<n>`, which the page styles; nothing is "".

    What is not finite is left out.
    """
    drawn = [{x: y for x, y in sorted(line.items()) if math.isfinite(y)} for line in lines]
    values = [value for line in drawn for value in line.values()]
    steps = [step for line in drawn for step in line]
    if not values:
        return ""
    low, high, first, last = min(values), max(values), min(steps), max(steps)
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def at(step: int, value: float) -> str:
        x = LEFT + (step - first) / ((last - first) or 1) * (right - LEFT)
        y = floor - (value - low) / ((high - low) or 1.0) * (floor - TOP)
        return f"{x:.1f},{y:.1f}"

    polylines = "".join(
        f'<polyline class="line{number % COLOURS}" fill="none" '
        f'stroke-dasharray="{DASHES[number % len(DASHES)]}" '
        f'points="{" ".join(at(step, value) for step, value in line.items())}"/>'
        for number, line in enumerate(drawn)
        if line
    )
    ends = (f"{low:.3g}", f"{high:.3g}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"{grid(WIDTH, HEIGHT)}{polylines}"
        f"{axis_labels(WIDTH, HEIGHT, ends, (str(first), f'step {last}'))}</svg>"
    )


def blocks(points: Mapping[int, float], low: float, high: float) -> str:
    """A line as a row of blocks between two values, each block the mean of its steps."""
    values = [points[step] for step in sorted(points) if math.isfinite(points[step])]
    count = min(len(values), BLOCKS_WIDE)
    bounds = [round(place * len(values) / count) for place in range(count + 1)] if count else []
    means = [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(bounds)]
    span = (high - low) or 1.0
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(min(max((m - low) / span, 0.0), 1.0) * top)] for m in means)
