"""A figure of a model over its history, as SVG: a mark with its interval for each thing that happened."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 260, 54, 16, 14, 40
RADIUS = 5
SERVED = ("founded", "promoted", "by hand", "rollback")
Mark = tuple[str, int | None, float | None, list[float] | None]
"""What happened, generation, figure, interval."""


def history_plot(marks: Sequence[Mark]) -> str:
    """Marks in order from left to right; a line leads through what was served. Nothing is "".

    Classes are those of the page: `mark` and what happened, with its spaces as dashes.
    """
    figures = [figure for _, _, figure, _ in marks if figure is not None]
    if not figures:
        return ""
    ends = [end for _, _, figure, interval in marks if figure is not None for end in interval or ()]
    low, high = min(figures + ends), max(figures + ends)
    floor, width = HEIGHT - BOTTOM, WIDTH - LEFT - RIGHT

    def x(place: int) -> float:
        return round(LEFT + width * (place + 0.5) / len(marks), 1)

    def y(value: float) -> float:
        return round(floor - (value - low) / ((high - low) or 1.0) * (floor - TOP), 1)

    drawn: list[str] = []
    served: list[str] = []
    for place, (happened, generation, figure, interval) in enumerate(marks):
        if generation is not None:
            name = f'<text x="{x(place)}" y="{HEIGHT - 8}" text-anchor="middle">{generation}</text>'
            drawn.append(name)
        if figure is None:
            continue
        if interval:
            span = f"M{x(place)},{y(interval[0])}V{y(interval[1])}"
            drawn.append(f'<path class="whisker" d="{span}"/>')
        kind = happened.replace(" ", "-")
        spot = f'cx="{x(place)}" cy="{y(figure)}" r="{RADIUS}"'
        drawn.append(f'<circle class="mark {kind}" {spot}><title>{happened}</title></circle>')
        if happened in SERVED:
            served.append(f"{x(place)},{y(figure)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<path class="grid" d="M{LEFT},{TOP}H{WIDTH - RIGHT}M{LEFT},{floor}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 5}" y="{floor + 3}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT - 5}" y="{HEIGHT - 8}" text-anchor="end">gen</text>'
        f'<polyline class="line" points="{" ".join(served)}"/>{"".join(drawn)}</svg>'
    )
