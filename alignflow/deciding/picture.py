"""Accuracy against cost as SVG: one dot for each arm, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 56, 190, 16, 44
LABEL_HEIGHT = 13


def matrix(arms: Mapping[str, Mapping[str, Any]], recommended: str | None, currency: str) -> str:
    """The picture; the cost's axis is logarithmic where it spans more than a tenfold."""
    costs = {arm: float(row["cost_per_1000"]) for arm, row in arms.items()}
    least = min((cost for cost in costs.values() if cost > 0), default=1.0)
    most = max([*costs.values(), least])
    is_log = most > 10 * least
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(cost: float) -> float:
        if is_log:
            share = math.log(max(cost, least) / least) / math.log(most / least)
        else:
            share = cost / most if most else 0.0
        return LEFT + share * (right - LEFT)

    def y(accuracy: float) -> float:
        return floor - accuracy * (floor - TOP)

    parts = [
        _grid(right, floor),
        _axes(floor, right, least if is_log else 0.0, most, currency, is_log),
    ]
    taken: list[float] = []
    for arm, row in sorted(arms.items(), key=lambda entry: -entry[1]["accuracy"]):
        low, high = row["interval"]
        at, up = x(costs[arm]), y(row["accuracy"])
        label = _free(up, taken)
        kind = (
            "chosen" if arm == recommended else "aside" if row["excluded_from_verdict"] else "dot"
        )
        parts.append(
            f'<path class="whisker" stroke="#888" d="M{at:.1f},{y(low):.1f}V{y(high):.1f}"/>'
            f'<circle class="{kind}" cx="{at:.1f}" cy="{up:.1f}" r="5" '
            f'fill="{_COLOURS[kind]}"><title>{escape(arm)}</title></circle>'
            f'<text x="{right + 14}" y="{label + 4:.1f}">{escape(arm)} {100 * row["accuracy"]:.0f} %</text>'
            f'<path class="leader" stroke="#ccc" d="M{at + 6:.1f},{up:.1f}L{right + 11},{label:.1f}"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )


_COLOURS = {"chosen": "#1a7f37", "dot": "#1f6feb", "aside": "#999"}


def _free(place: float, taken: list[float]) -> float:
    """The height of a label below those that are there already."""
    while any(abs(place - other) < LABEL_HEIGHT for other in taken):
        place += 1.0
    taken.append(place)
    return place


def _grid(right: float, floor: float) -> str:
    lines = "".join(
        f'<path class="grid" stroke="#ddd" d="M{LEFT},{TOP + (floor - TOP) * n / 4}H{right}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + (floor - TOP) * n / 4 + 4}" text-anchor="end">{100 - 25 * n} %</text>'
        for n in range(5)
    )
    return lines


def _axes(floor: float, right: float, low: float, high: float, currency: str, is_log: bool) -> str:
    scale = ", logarithmic" if is_log else ""
    money = escape(currency)
    return (
        f'<text x="{LEFT}" y="{floor + 16}">{money}{low:.3g}</text>'
        f'<text x="{right}" y="{floor + 16}" text-anchor="end">{money}{high:.3g}</text>'
        f'<text x="{(LEFT + right) / 2}" y="{floor + 32}" text-anchor="middle">'
        f"cost of 1,000 questions{scale}</text>"
    )
