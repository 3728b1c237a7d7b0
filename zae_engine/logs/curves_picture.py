"""A run as a picture. Imported only when a picture is asked for, since it needs matplotlib.

No pyplot and no global state, so that a thread beside the training can draw.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .panels import NOT_DRAWN, TITLES, parts_of, smoothed, thinned, window_of

Row = Mapping[str, Any]
Points = tuple[Any, Any]  # steps and values, as arrays

# Okabe and Ito's colours, which colour-blind readers tell apart, too; the markers differ as well.
_STYLES = {"train": ("#0072B2", "o"), "test": ("#D55E00", "s"), "": ("#333333", "o")}
_OTHERS = (("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "D"), ("#56B4E9", "P"))
_MOST = 24  # panels; more would take long to draw, and nobody looks at them all
_CURVES = 24  # in one panel; more could not be told apart
_STEPS = (1, 2, 2.5, 5, 10)  # between the numbers at an axis
_MARKED = 40  # as many values as get a marker each
_CJK = (
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Droid Sans Fallback",
)


class Picture(Figure):  # type: ignore[misc,unused-ignore]  # matplotlib may be missing where types are checked
    """A figure that a notebook shows by itself, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=100)
        return buffer.getvalue()


@dataclass
class Panel:
    """One quantity: its curves by their names, ``train``, ``test``, ``test NAME`` or none, and each step's values."""

    curves: dict[str, Points] = field(default_factory=dict)
    raw: Points | None = None

    @property
    def all(self) -> list[Points]:
        """Everything that is drawn in it."""
        return [*self.curves.values(), *([self.raw] if self.raw is not None else [])]


def draw(
    rows: Sequence[Row], steps: Mapping[str, Points] | None = None, resumes: Sequence[int] = (), title: str = ""
) -> Picture:
    """Return a figure with one panel a quantity: the loss first, then metrics, gradient norm and learning rate.

    Parameters
    ----------
    rows : sequence of mappings
        Rows of a history.
    steps : mapping, optional
        Quantity (``loss``, ``grad_norm``, ``lr``, …) → the steps and the values of a training that has them, both
        one-dimensional and of one length.
    resumes : sequence of int
        The steps at which the run went on.
    title : str
        Above all.
    """
    panels = panels_of(rows, steps or {})
    spare = [name for name in panels if name not in ("loss", "grad_norm", "lr")][max(_MOST - 3, 0) :]
    shown = {name: panel for name, panel in panels.items() if name not in spare}
    columns = min(len(shown), 2 if len(shown) <= 6 else 3)
    lines = -(-len(shown) // columns)
    figure = Picture(figsize=((5.4 if columns > 1 else 7.5) * columns, 3.3 * lines + 0.5), layout="constrained")
    end = max((float(x[-1]) for panel in panels.values() for x, _ in panel.all if len(x)), default=0.0)
    handles: dict[str, Any] = {}
    for place, (name, panel) in enumerate(shown.items(), start=1):
        axis: Any = figure.add_subplot(lines, columns, place)
        _frame(axis, name, max(end, 1.0), padded=bool(resumes))
        _curves(axis, name, panel)
        _mark(axis, panel, resumes, end)
        axis.set_xlabel(_unit(rows) if place > len(shown) - columns else "")
        handles = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")} | handles
    _around(figure, handles, " · ".join(filter(None, [title, f"{len(spare)} more metrics" if spare else ""])))
    return figure


# ---------------------------------------------------------------------- what is drawn


def panels_of(rows: Sequence[Row], steps: Mapping[str, Points]) -> dict[str, Panel]:
    """Quantity → its panel; the loss first, the learning rate last."""
    at = np.array([float(row.get("step") or place) for place, row in enumerate(rows, start=1)])
    panels: dict[str, Panel] = {"loss": Panel()}
    for name, (quantity, curve) in parts_of(name for row in rows for name in row).items():
        values = _floats([row.get(name) for row in rows])
        there = np.array([row.get(name) is not None for row in rows], dtype=bool)
        curves = panels.setdefault(quantity, Panel()).curves
        if len(curves) < _CURVES:
            curves[curve] = at[there], values[there]
    for name, (x, y) in steps.items():
        if name not in NOT_DRAWN:
            _add_steps(panels.setdefault(name, Panel()), name, np.asarray(x, dtype=float), _floats(y))
    last = {"grad_norm": 1, "lr": 2}
    order = sorted(panels, key=lambda name: (last.get(name, 0), name != "loss"))
    return {name: panels[name] for name in order if panels[name].curves} or {"loss": Panel()}


def _add_steps(panel: Panel, name: str, x: Any, y: Any) -> None:
    """Let the values of the steps stand for the training's rows, but for rows of before them."""
    if not len(x):
        return
    curve = "" if name == "lr" or set(panel.curves) == {""} else "train"
    before, means = panel.curves.pop(curve, (np.empty(0), np.empty(0)))
    smooth = name != "lr" and window_of(len(y)) > 1
    panel.raw = (x, y) if smooth else None
    earlier = before < x[0]
    whole = np.append(before[earlier], x), np.append(means[earlier], smoothed(y) if smooth else y)
    panel.curves = {curve: whole, **panel.curves}


def _floats(values: Any) -> Any:
    """An array of floats, with NaN for what is missing; text such as ``'nan'`` is read as it is meant."""
    if isinstance(values, np.ndarray):
        return values.astype(float)
    try:
        return np.array(values, dtype=float)  # None becomes NaN
    except (TypeError, ValueError):
        return np.array([math.nan if value is None else float(value) for value in values])


# ---------------------------------------------------------------------- how it is drawn


def _frame(axis: Any, name: str, end: float, padded: bool) -> None:
    axis.set_title(TITLES.get(name, name), fontsize=11, loc="left", fontweight="bold", pad=15 if padded else 6)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(0, end * 1.02)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_STEPS))
    axis.xaxis.set_major_formatter(FuncFormatter(_number))
    axis.tick_params(labelsize=9)


def _curves(axis: Any, name: str, panel: Panel) -> None:
    if panel.raw is not None:
        axis.plot(*thinned(*panel.raw), color="#0072B2", alpha=0.3, linewidth=0.7, label="train, each step")
    others = [curve for curve in panel.curves if curve not in _STYLES]
    for curve, (x, y) in panel.curves.items():
        colour, marker = _STYLES.get(curve) or _OTHERS[others.index(curve) % len(_OTHERS)]
        style = {"marker": marker, "markersize": 3.5} if len(x) <= (1 if name == "lr" else _MARKED) else {}
        label = curve or f"_{name}"
        axis.plot(*thinned(x, y), color=colour, label=label, linewidth=1.5, **style)
    if (name == "grad_norm" or "loss" in name) and _is_wide(panel, spikes=name == "grad_norm"):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axis.yaxis.set_major_formatter(FuncFormatter(_number))


def _is_wide(panel: Panel, spikes: bool) -> bool:
    """Whether all is positive, and the greatest is over 100 times the least of the curves.

    With `spikes`, 20 times the median is wide, too: on a linear scale, one spike would hide everything else.
    """
    everything = [y[np.isfinite(y)] for _, y in panel.all]
    curves = np.concatenate([y[np.isfinite(y)] for _, y in panel.curves.values()] or [np.empty(0)])
    if not len(curves) or min(y.min() for y in everything if len(y)) <= 0:
        return False
    most = max(y.max() for y in everything if len(y))
    return bool(most > 100 * curves.min() or (spikes and most > 20 * np.median(curves)))


def _mark(axis: Any, panel: Panel, resumes: Sequence[int], end: float) -> None:
    """Mark where the run went on, and where values are no numbers."""
    bad = np.unique(np.concatenate([x[~np.isfinite(y)] for x, y in panel.all] or [np.empty(0)]))
    if len(bad):
        bad = bad[np.linspace(0, len(bad) - 1, min(len(bad), 200)).astype(int)]
        axis.plot(bad, np.full(len(bad), 0.02), linestyle="", marker="x", markersize=4, color="black",
                  label="NaN or infinite", transform=axis.get_xaxis_transform())  # fmt: skip
    told = -math.inf
    for step in sorted(set(resumes)):
        axis.axvline(step, color="#666666", linewidth=0.9, linestyle=(0, (4, 3)), label="resumed")
        if step - told > 0.11 * end:  # else the words would run into each other
            axis.annotate("resumed", (step, 1.0), (0, 2), xycoords=axis.get_xaxis_transform(), ha="center",
                          textcoords="offset points", fontsize=7.5, color="#555555")  # fmt: skip
            told = step


def _around(figure: Any, handles: dict[str, Any], title: str) -> None:
    """Title and legend, and letters that the default font lacks."""
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    if len(handles) > 1:
        order = sorted(handles, key=lambda label: (label in ("resumed", "NaN or infinite"), not label.startswith("tr")))
        legend = figure.legend([handles[label] for label in order], order, loc="outside lower center", frameon=False,
                               ncols=min(len(order), 6), fontsize=9.5)  # fmt: skip
        for line in legend.get_lines():
            line.set_linewidth(max(line.get_linewidth(), 1.5))
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # a metric's name may have a $ in it
        if not text.get_text().isascii():
            _spell(text)


def _spell(text: Any) -> None:
    """Write other letters with a font that has them; where there is none, without a warning at each drawing."""
    if family := next((name for name in _CJK if name in fontManager.get_font_names()), None):
        text.set_fontfamily(["DejaVu Sans", family])
    else:
        text.set_text("".join(letter if ord(letter) < 0x2100 else "?" for letter in text.get_text()))


def _unit(rows: Sequence[Row]) -> str:
    """The name of the horizontal axis, with the length of an epoch where all are equally long."""
    ends = {row.get("epoch"): row.get("step") for row in rows if row.get("train_loss") is not None}
    lengths = {step / epoch if epoch and step else 0.0 for epoch, step in ends.items()}
    length = lengths.pop() if len(lengths) == 1 else 0.0
    return f"step ({length:,.0f} an epoch)" if length >= 1 and length == int(length) else "step"


def _number(value: float, _: Any = None) -> str:
    if 1e4 <= abs(value) < 1e10 or (value == int(value) and abs(value) < 1e10):
        return f"{value:,.0f}"
    return f"{value:.8g}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")
