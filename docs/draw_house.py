"""Draw the rooms of the package, and which imports from which: ``python docs/draw_house.py`` writes docs/house.svg.

Only arrows that no chain of others stands for are drawn: whoever imports from a room may import from all below it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, PICTURE = ROOT / "zae_engine", ROOT / "docs" / "house.svg"
# Files that stand in a folder beside rooms, by the name of the box that they are drawn in.
BESIDE = {"": "zae_engine/", "trainer": "trainer/ (shared)"}
TOP = {"trainer/trainer", "trainer/methods", "trainer/options"}
ABOVE = "trainer/ (the Trainer)"
FACES = {
    "__init__",
    "trainer/__init__",
    "trainer/_trainer",
    "trainer/addons/core",
    "trainer/addons/mpu",
    "trainer/console/banner",
}
WIDTH, BOX, GAP, LINE, LETTER = 1240, 214, 26, 15, 6.5
Spot = tuple[str, int]  # a room in its row; in a row between, where an arrow to that room passes


def room_of(name: str) -> str:
    """The box of a module, given from the package on: ``trainer/step/update``."""
    folder, _, _ = name.rpartition("/")
    if name in TOP:
        return ABOVE
    if folder.startswith("logs"):
        return "logs/"
    return BESIDE.get(folder, f"{folder}/")


def modules() -> dict[str, Path]:
    """The package's modules by name, but for those that only hand on."""
    found = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in found.items() if not name.endswith("__init__") and name not in FACES}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports."""
    folder = path.relative_to(PACKAGE).parent
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = Path(*folder.parts[: len(folder.parts) - node.level + 1], *(node.module or "").split("."))
            for alias in node.names:
                for each in ((base / alias.name).as_posix(), base.as_posix()):
                    if each in known:
                        yield each
                        break


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    """Of each room, the rooms that it imports from."""
    edges: dict[str, set[str]] = {room_of(name): set() for name in known}
    for name, path in known.items():
        edges[room_of(name)] |= {room_of(other) for other in imports(path, known)} - {room_of(name)}
    return edges


def depths(edges: dict[str, set[str]]) -> dict[str, int]:
    """How many rooms lie below each, in the longest chain."""
    found: dict[str, int] = {}
    while len(found) < len(edges):
        ready = [room for room in edges if room not in found and edges[room] <= found.keys()]
        if not ready:
            raise ValueError(f"rooms import from each other: {sorted(edges.keys() - found.keys())}")
        found |= {room: 1 + max((found[other] for other in edges[room]), default=-1) for room in ready}
    return found


def reachable(room: str, edges: dict[str, set[str]]) -> set[str]:
    """All rooms below one."""
    return edges[room].union(*(reachable(other, edges) for other in edges[room]))


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a chain of others stands for."""
    return {room: others - set().union(*(reachable(other, edges) for other in others))
            for room, others in edges.items()}  # fmt: skip


def wrapped(words: list[str]) -> list[str]:
    """Words in lines as wide as a box."""
    lines, most = [""], int((BOX - 16) / LETTER)
    for word in words:
        if len(lines[-1]) + len(word) + 1 > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def links(edges: dict[str, set[str]], depth: dict[str, int]) -> list[tuple[Spot, Spot]]:
    """The arrows, in pieces from each row to the next, so that none is hidden by a box; to one room they join."""
    found = set[tuple[Spot, Spot]]()
    for room, others in reduced(edges).items():
        for other in others:
            way = [(room, depth[room]), *((other, d) for d in range(depth[room] - 1, depth[other] - 1, -1))]
            found |= set(pairwise(way))
    return sorted(found)


def spread(wanted: list[float], widths: list[float]) -> list[float]:
    """Middles as near to the wanted ones as boxes that wide can be in one row; in the order given."""
    middles = list[float]()
    for want, width in zip(wanted, widths, strict=True):
        least = middles[-1] + (widths[len(middles) - 1] + width) / 2 + GAP if middles else width / 2 + GAP
        middles.append(max(want, least))
    shift = sum(map(float.__sub__, wanted, middles)) / len(middles)
    shift = min(shift, WIDTH - GAP - widths[-1] / 2 - middles[-1])
    return [middle + max(shift, widths[0] / 2 + GAP - middles[0]) for middle in middles]


def columns(pieces: list[tuple[Spot, Spot]], depth: dict[str, int]) -> dict[Spot, float]:
    """How far to the right each spot is: below the middle of those that lead there."""
    middles = dict[Spot, float]()
    spots = {spot for piece in pieces for spot in piece}
    for row in sorted(set(depth.values()), reverse=True):
        wanted = dict[Spot, float]()
        for spot in sorted(spot for spot in spots if spot[1] == row):
            above = [middles[start] for start, end in pieces if end == spot]
            wanted[spot] = sum(above) / len(above) if above else WIDTH / 2 if row == max(depth.values()) else 0.0
        order = sorted(wanted, key=lambda spot: wanted[spot])
        widths = [float(BOX) if depth[room] == row else 0.0 for room, _ in order]
        middles |= zip(order, spread([wanted[spot] for spot in order], widths), strict=True)
    return middles


def draw() -> str:
    """The picture, as SVG."""
    known = modules()
    edges = graph(known)
    depth = depths(edges)
    pieces = links(edges, depth)
    middles = columns(pieces, depth)
    inside = {room: wrapped(sorted(n.rpartition("/")[2] for n in known if room_of(n) == room)) for room in edges}
    heights = {room: 32 + LINE * len(lines) for room, lines in inside.items()}
    tops, bottoms, y = dict[int, int](), dict[int, int](), GAP
    for row in sorted(set(depth.values()), reverse=True):
        tops[row], bottoms[row] = y, y + max(heights[room] for room in depth if depth[room] == row)
        y = bottoms[row] + 2 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="ui-monospace, monospace"'
        ' font-size="11">',
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#7a8699"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>',
    ]
    for start, end in pieces:
        foot = tops[start[1]] + (heights[start[0]] if depth[start[0]] == start[1] else 0)
        way = (middles[start], foot, bottoms[start[1]]), (middles[end], tops[end[1]])
        parts.append(arrow(*way, arrives=depth[end[0]] == end[1]))
    for room in sorted(edges):
        parts += box(room, inside[room], (middles[room, depth[room]] - BOX / 2, tops[depth[room]], heights[room]))
    return "\n".join([*parts, "</svg>", ""])


def arrow(start: tuple[float, float, float], end: tuple[float, float], arrives: bool) -> str:
    """From a foot past its row, and on to the next one; with a head where it arrives."""
    (x0, foot, y0), (x1, y1) = start, end
    middle = (y0 + y1) / 2
    way = f"M{x0:.0f} {foot:.0f} V{y0:.0f} C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1 - arrives:.0f}"
    head = ' marker-end="url(#to)"' if arrives else ""
    return f'<path d="{way}" fill="none" stroke="#7a8699" stroke-width="1.2"{head}/>'


def box(room: str, lines: list[str], place: tuple[float, float, float]) -> list[str]:
    """A room with the names of its files."""
    x, y, height = place
    colour = "#e8f0fe" if room.startswith("trainer") else "#f1f3f5"
    parts = [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{height:.0f}" rx="6" fill="{colour}" stroke="#5b6b82"/>',
        f'<text x="{x + 8:.0f}" y="{y + 17:.0f}" font-size="12" font-weight="bold" fill="#1c2733">{escape(room)}'
        "</text>",
    ]
    for number, line in enumerate(lines):
        at = f'x="{x + 8:.0f}" y="{y + 34 + LINE * number:.0f}"'
        parts.append(f'<text {at} fill="#33404f">{escape(line)}</text>')
    return parts


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
