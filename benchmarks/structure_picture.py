"""Draws folders as boxes on floors and their imports as arrows: docs/architecture.svg.

A box stands one row above the highest box that it imports. An arrow that other arrows imply (A to C,
where A to B and B to C are drawn) is left out, and so are those to the lowest box, which every folder
imports. The same imports give the same file, byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structure import Arrow, Floors

Pair = tuple[str, str]
Point = tuple[float, float]

WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT, MARGIN = 920, 88, 150, 42, 16
SWEEPS = 8
TOP = "alignflow"
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328; text-anchor: middle; }
  .name { font-weight: 600; font-size: 13px; }
  .size, .count { font-size: 10.5px; fill: #59636e; }
  .count { stroke: #ffffff; stroke-width: 4px; paint-order: stroke; }
  rect { fill: #f6f8fa; stroke: #818b98; }
  path { fill: none; stroke: #818b98; stroke-width: 1.2; }
  .tip { fill: #818b98; stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .size, .count { fill: #9198a1; }
    .count { stroke: #0d1117; }
    rect { fill: #161b22; stroke: #656c76; }
    path { stroke: #656c76; }
    .tip { fill: #656c76; }
  }
"""


def draw(floors: Floors, every: set[Arrow], files: Mapping[str, Path]) -> str:
    """The picture as SVG text."""
    ground = ", ".join(floors.floors[0])
    box_of = {name: box(floors, name) for name in files}
    sizes = Counter(box_of.values())
    pairs = Counter((box_of[a], box_of[b]) for a, b in every if box_of[a] != box_of[b])
    drawn = {pair: n for pair, n in pairs.items() if ground not in pair}
    essential = {pair: n for pair, n in drawn.items() if not implied(pair, drawn)}
    rows = heights(sorted(name for name in sizes if name != ground), essential)
    layers, paths = routed(rows, essential)
    places = placed(layers)
    height = MARGIN * 2 + ROW * len(layers) + BOX_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Folders of alignflow and what imports what</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
    ]

    def at(name: str, row: int) -> Point:
        return places[name], height - MARGIN - BOX_HEIGHT / 2 - ROW * (row + 1)

    for pair, stops in sorted(ways(essential, rows, paths, at).items()):
        lines += arrow(stops, essential[pair])
    for name, row in sorted(rows.items()):
        lines += drawn_box(name, sizes[name], at(name, row), BOX_WIDTH)
    middle = (WIDTH / 2, height - MARGIN - BOX_HEIGHT / 2)
    lines += drawn_box(ground, sizes[ground], middle, WIDTH - 2 * MARGIN)
    return "\n".join([*lines, "</svg>", ""])


def box(floors: Floors, module: str) -> str:
    """Name of the box that a module is in; the lowest floor is one box, and so is the top."""
    place = floors.place(module) or ""
    if place in floors.floors[0]:
        return ", ".join(floors.floors[0])
    if place in ("", "__main__"):
        return TOP
    parent = place.rpartition(".")[0]
    beside_parent = parent and floors.height(parent) == floors.height(place)
    return parent if beside_parent else place


def implied(pair: Pair, pairs: Iterable[Pair]) -> bool:
    """Whether the imports of others lead from the one end of a pair to the other."""
    reached = {b for a, b in pairs if a == pair[0] and b != pair[1]}
    while more := {b for a, b in pairs if a in reached} - reached:
        reached |= more
    return pair[1] in reached


def heights(names: Sequence[str], pairs: Iterable[Pair]) -> dict[str, int]:
    """Row of each box, from 0: one above the highest that it imports."""
    rows = dict.fromkeys(names, 0)
    for _ in names:
        for importer, imported in sorted(pairs):
            rows[importer] = max(rows[importer], rows[imported] + 1)
    return rows


def routed(
    rows: Mapping[str, int], pairs: Iterable[Pair]
) -> tuple[list[list[str]], dict[Pair, list[tuple[str, int]]]]:
    """What lies in each row, and the points in between through which each arrow goes.

    Rows are ordered so that what is joined lies close together (the barycentre of neighbours).
    """
    layers = [
        sorted(n for n, row in rows.items() if row == r) for r in range(max(rows.values()) + 1)
    ]
    paths: dict[Pair, list[tuple[str, int]]] = {}
    near: dict[str, set[str]] = {name: set() for name in rows}
    for importer, imported in sorted(pairs):
        between = range(rows[importer] - 1, rows[imported], -1)
        paths[importer, imported] = [(f"{importer}>{imported}@{row}", row) for row in between]
        for name, row in paths[importer, imported]:
            layers[row].append(name)
            near[name] = set()
        chain = [importer, *(name for name, _ in paths[importer, imported]), imported]
        for a, b in pairwise(chain):
            near[a].add(b)
            near[b].add(a)
    for _ in range(SWEEPS):
        for layer in (*layers, *reversed(layers)):
            spots = {n: i / max(len(row) - 1, 1) for row in layers for i, n in enumerate(row)}
            layer.sort(
                key=lambda n: (sum(spots[m] for m in sorted(near[n])) / max(len(near[n]), 1), n)
            )
    return layers, paths


def placed(layers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Middle of each box, and of each point that an arrow passes, from the left."""
    places: dict[str, float] = {}
    for layer in layers:
        widths = [30.0 if ">" in name else BOX_WIDTH for name in layer]
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / len(layer)
        left = MARGIN + gap / 2
        for name, width in zip(layer, widths, strict=True):
            places[name] = round(left + width / 2, 1)
            left += width + gap
    return places


def ways(
    pairs: Iterable[Pair],
    rows: Mapping[str, int],
    paths: Mapping[Pair, list[tuple[str, int]]],
    at: Callable[[str, int], Point],
) -> dict[Pair, list[Point]]:
    """Points of each arrow; those that meet at a box are spread along its edge, in order."""
    stops: dict[Pair, list[Point]] = {}
    for a, b in pairs:
        between = [
            (x, y + side * BOX_HEIGHT / 2)
            for x, y in (at(name, row) for name, row in paths[a, b])
            for side in (-1, 1)
        ]
        (x, y), (end_x, end_y) = at(a, rows[a]), at(b, rows[b])
        stops[a, b] = [(x, y + BOX_HEIGHT / 2), *between, (end_x, end_y - BOX_HEIGHT / 2)]
    for end, following in ((0, 1), (-1, -2)):
        for name in rows:
            meeting = sorted((stops[pair][following], pair) for pair in stops if pair[end] == name)
            for number, (_, pair) in enumerate(meeting):
                x, y = stops[pair][end]
                share = (number + 1) / (len(meeting) + 1) - 0.5
                stops[pair][end] = (round(x + share * BOX_WIDTH * 0.8, 1), y)
    return stops


def arrow(stops: Sequence[Point], number: int) -> list[str]:
    """A smooth line through points, with its count on the first stretch."""
    way = f"M{stops[0][0]:g} {stops[0][1]:g}"
    for (x, y), (next_x, next_y) in pairwise(stops):
        half = (next_y - y) / 2
        way += f" C{x:g} {y + half:g} {next_x:g} {next_y - half:g} {next_x:g} {next_y:g}"
    (x, y), (next_x, next_y) = stops[0], stops[1]
    # a quarter of the way along the curve, where the lines from one box have parted
    count_x, count_y = x + 0.16 * (next_x - x), y + 0.32 * (next_y - y)
    return [
        f'<path d="{way}" marker-end="url(#tip)"/>',
        f'<text class="count" x="{count_x:.1f}" y="{count_y + 4:.1f}">{number}</text>',
    ]


def drawn_box(name: str, size: int, middle: Point, width: float) -> list[str]:
    """A box with its name and the number of its files."""
    x, y = middle
    files = "1 file" if size == 1 else f"{size} files"
    return [
        f'<rect x="{x - width / 2:g}" y="{y - BOX_HEIGHT / 2:g}" width="{width:g}" '
        f'height="{BOX_HEIGHT}" rx="6"/>',
        f'<text class="name" x="{x:g}" y="{y - 3:g}">{name}</text>',
        f'<text class="size" x="{x:g}" y="{y + 13:g}">{files}</text>',
    ]
