"""A history as a picture. Imported only when a picture is asked for, since it needs matplotlib.

The history is passed as Any, since its module imports this one.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure

_COLOURS = {"train": "#0072B2", "test": "#D55E00", "": "#009E73"}  # told apart by colour-blind readers, too
_NOT_DRAWN = ("epoch", "step", "seconds")


class Picture(Figure):  # type: ignore[misc,unused-ignore]  # matplotlib may be missing where types are checked
    """A figure that a notebook shows by itself, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=100)
        return buffer.getvalue()


def draw_history(history: Any) -> Picture:
    """Return a figure with one panel a quantity: the loss first, then metrics, gradient norm and learning rate."""
    panels = _panels(history)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Picture(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, curves, history)
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def _panels(history: Any) -> dict[str, dict[str, str]]:
    """Quantity → {set: column}, with the learning rate last."""
    panels: dict[str, dict[str, str]] = {"loss": {}}
    for name in history.columns:
        split, _, quantity = name.partition("_")
        if name in _NOT_DRAWN or name == "lr":
            continue
        if split in ("train", "test"):
            panels.setdefault(quantity, {})[split] = name
        else:
            panels.setdefault(name, {})[""] = name
    if "lr" in history.columns:
        panels["learning rate"] = {"": "lr"}
    return {title: curves for title, curves in panels.items() if curves} or {"loss": {}}


def _draw_panel(axis: Any, title: str, curves: dict[str, str], history: Any) -> None:
    epochs = _positions(history)
    for split, column in curves.items():
        points = [(x, y) for x, y in zip(epochs, history.column(column), strict=True) if y is not None]
        marker = "o" if len(points) <= 20 else None
        axis.plot(*zip(*points, strict=True), color=_COLOURS[split], label=split or title, marker=marker, markersize=3)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axis.legend(frameon=False)


def _positions(history: Any) -> list[float]:
    """Where each row stands in epochs; rows within an epoch are spread over it by their steps."""
    positions: list[float] = []
    steps = history.column("step")
    ends = {row["epoch"]: row["step"] for row in history}
    for row, step in zip(history, steps, strict=True):
        epoch = float(row["epoch"] or 0)
        start = float(ends.get(epoch - 1) or 0)
        length = float(ends[row["epoch"]] or 0) - start
        positions.append(epoch - 1 + (float(step or 0) - start) / length if length > 0 else epoch)
    return positions
