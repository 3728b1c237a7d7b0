"""Figures of a report, as plain values for plotly: which curves are in which panel, their colours and marks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..terminal import in_line
from .curves import resumes_of, steps_of
from .history_file import Line
from .panels import NOT_DRAWN, TITLES, parts_of, smoothed, thinned, window_of
from .reading import Run

Trace = dict[str, Any]

# Light enough for a dark page and dark enough for a light one; told apart by colour-blind readers, the first ones best.
COLOURS = ("#2f7fd6", "#e0731a", "#1f9d7a", "#c9579b", "#8b6fd4", "#b38a00", "#cf4a52", "#4f9fb0")
_TRAIN, _TESTS = COLOURS[0], COLOURS[1:]
_GREY = "#8a919c"
_MARKED = 60  # as many points as get a marker each
_LAST = ("grad_norm", "lr")
_MOST, _CURVES = 60, 40  # panels of a page, and curves of a panel: a browser draws them within seconds


@dataclass
class Curve:
    """One quantity of one run.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
        Steps and values, smoothed where there are many.
    raw : (ndarray, ndarray) or None
        As it was, when `y` is smoothed.
    lost : int
        How many of the values are NaN or infinite.
    """

    x: NDArray[Any]
    y: NDArray[np.float64]
    raw: tuple[NDArray[Any], NDArray[np.float64]] | None = None
    lost: int = 0


@dataclass
class Figure:
    """One panel of the report.

    Attributes
    ----------
    title : str
    notes : list of str
        Sentences below it: what is missing.
    is_smooth : bool
        Whether there are means of several steps in it, and the steps faintly behind.
    data, layout : plotly's
        ``meta`` of a trace is the number of the run that it belongs to.
    is_wide : bool
        Whether it takes a whole row of the page.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    data: list[Trace] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    is_wide: bool = False
    is_smooth: bool = False


def colour_of(number: int) -> str:
    """The colour of a run, everywhere in a report; after eight they come again."""
    return COLOURS[number % len(COLOURS)]


def figures_of(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Figure], int]:
    """Draw runs: of one, a panel a quantity with all of its curves; of several, a panel a quantity and data set.

    No more than a page can hold, what is watched first; and how many panels are left out.

    Parameters
    ----------
    runs : sequence of Run
    names : sequence of str
        Of the runs, as they are to be shown.
    """
    quantities = _quantities(runs)
    found, left = [curves_of(run, set(quantities[:_MOST])) for run in runs], max(len(quantities) - _MOST, 0)
    if len(runs) == 1:
        panels = {name: [(curve, 0) for curve in curves] for name, curves in found[0].items()}
        figures = [_panel(name, parts, found, runs, names) for name, parts in panels.items()]
        for figure in figures[:1]:
            figure.is_wide = True
        return figures, left
    kinds = dict.fromkeys((name, curve) for curves in found for name in curves for curve in curves[name])
    order = sorted(kinds, key=lambda kind: (_rank(kind[0]), kind[0], kind[1] == "train", kind[1]))
    return [
        _panel(
            name, [(curve, i) for i, curves in enumerate(found) if curve in curves.get(name, {})], found, runs, names
        )
        for name, curve in order[:_MOST]
    ], left + max(len(order) - _MOST, 0)


def _quantities(runs: Sequence[Run]) -> list[str]:
    """What there is to draw, by its name: the loss, what is watched, and what every training has; then as it came."""
    columns = [parts_of(run.columns) for run in runs]
    of_steps = [name for run in runs for name in (*run.steps, *(n for p in run.points for n in p.get("train") or ()))]
    every = dict.fromkeys((*(part for each in columns for part, _ in each.values()), *of_steps, "lr"))
    watched = [each[run.best.name][0] for run, each in zip(runs, columns, strict=True)
               if run.best and run.best.name in each]  # fmt: skip
    first = [name for name in ("loss", *watched, *_LAST) if name in every]
    return [name for name in dict.fromkeys([*first, *every]) if name not in NOT_DRAWN]


def _rank(name: str) -> int:
    return _LAST.index(name) + 2 if name in _LAST else int(name != "loss")


# ---------------------------------------------------------------------- curves


def curves_of(run: Run, quantities: Collection[str] | None = None) -> dict[str, dict[str, Curve]]:
    """Quantity → its curves by name: ``train``, ``test``, ``test NAME``, or none. The loss first, the rate last.

    Parameters
    ----------
    run : Run
    quantities : collection of str, optional
        Those that are wanted; all if not given.
    """
    found = dict[str, dict[str, Curve]]()
    for name, (quantity, curve) in parts_of(run.columns).items():
        if quantities is None or quantity in quantities:
            found.setdefault(quantity, {})[curve] = _of_rows(run.rows, name)
    for name, (x, y) in steps_of(run).items():
        if name not in NOT_DRAWN and len(x) and (quantities is None or name in quantities):
            curves = found.setdefault(name, {})
            curve = "" if name == "lr" or (curves and "train" not in curves and "" in curves) else "train"
            found[name] = {**curves, curve: _of_steps(name, np.asarray(x), np.asarray(y, np.float64))}
    drawn = {name: {k: c for k, c in curves.items() if len(c.x)} for name, curves in found.items()}
    return {name: drawn[name] for name in sorted(drawn, key=_rank) if drawn[name]}


def _of_rows(rows: Sequence[Line], name: str) -> Curve:
    there = [(row.get("step") or i, row[name]) for i, row in enumerate(rows, start=1) if _is_number(row.get(name))]
    values = np.array([value for _, value in there], np.float64)
    return Curve(np.array([step for step, _ in there], np.int64), values, lost=int((~np.isfinite(values)).sum()))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_steps(name: str, x: NDArray[Any], y: NDArray[np.float64]) -> Curve:
    lost = int((~np.isfinite(y)).sum())
    if name == "lr" or window_of(len(y)) == 1:
        return Curve(x, y, lost=lost)
    return Curve(x, smoothed(y), (x, y), lost)


# ---------------------------------------------------------------------- a panel


def _panel(
    name: str,
    parts: Sequence[tuple[str, int]],
    found: Sequence[Mapping[str, Mapping[str, Curve]]],
    runs: Sequence[Run],
    names: Sequence[str],
) -> Figure:
    """One panel: of each part, a curve's name and the number of its run."""
    title, several = TITLES.get(name, name), len(runs) > 1
    if several and parts[0][0]:
        title = f"{parts[0][0]} {title}"
    figure, more, parts = Figure(in_line(title)), len(parts) - _CURVES, parts[:_CURVES]
    every = [found[i][name][curve] for curve, i in parts]
    if more > 0:
        figure.notes.append(f"{more:,} more curves are left out.")
    for (curve, i), drawn in zip(parts, every, strict=True):
        label = escape(in_line(names[i] if several else curve or title), quote=False)  # which plotly reads as HTML
        colour = colour_of(i) if several else _colour(curve, [c for c, _ in parts])
        figure.data += _traces(drawn, label, colour, i, hover=not several)
        figure.is_smooth |= drawn.raw is not None
        if drawn.lost:
            figure.notes.append(_loss_of(drawn, names[i] if several else curve or title))
    for i in dict.fromkeys(i for _, i in parts):
        figure.data += _marks(runs[i], i, several)
    figure.layout = _layout(name, every, several)
    return figure


def _colour(curve: str, curves: Sequence[str]) -> str:
    tests = [name for name in curves if name not in ("", "train")]
    return _TESTS[tests.index(curve) % len(_TESTS)] if curve in tests else _TRAIN


def _loss_of(curve: Curve, label: str) -> str:
    count = len(curve.raw[0] if curve.raw else curve.x)
    what = "is NaN or infinite, and a gap" if curve.lost == 1 else "are NaN or infinite, and gaps"
    return f"{label}: {curve.lost:,} of {count:,} values {what}."


def _traces(curve: Curve, label: str, colour: str, number: int, hover: bool) -> Iterator[Trace]:
    """The curve, and faintly behind it what it is the mean of."""
    own = {"type": "scatter", "meta": number, "legendgroup": label}
    if curve.raw is not None:
        yield own | {"mode": "lines", "name": f"{label}, this step", **_points(*curve.raw), "showlegend": False,
                     "line": {"color": colour, "width": 1}, "opacity": 0.28,
                     **({"hovertemplate": "%{y:.5g}"} if hover else {"hoverinfo": "skip"})}  # fmt: skip
    few = len(curve.x) <= _MARKED
    yield own | {"mode": "lines+markers" if few else "lines", "name": label, **_points(curve.x, curve.y),
                 "line": {"color": colour, "width": 2}, "marker": {"size": 5},
                 "hovertemplate": "%{y:.5g}"}  # fmt: skip


def _points(x: NDArray[Any], y: NDArray[np.float64]) -> dict[str, list[Any]]:
    """Few enough to be drawn at once, as short text, and with nothing that JSON lacks."""
    x, y = thinned(x, y)
    return {"x": [int(step) for step in x], "y": [None if math.isnan(v) else float(f"{v:.6g}") for v in y]}


def _marks(run: Run, number: int, several: bool) -> Iterator[Trace]:
    """Thin vertical lines, on an axis of their own, so that they come and go with their run."""
    resumes = resumes_of(run)
    if resumes:
        yield _lines(resumes, "went on here", colour_of(number) if several else _GREY, number, "dash")
    kept = sorted({checkpoint.step for checkpoint in run.saved})
    if kept and not several:
        yield _lines(kept, "checkpoint", _GREY, number, "dot")


def _lines(steps: Sequence[int], label: str, colour: str, number: int, dash: str) -> Trace:
    return {"type": "scatter", "mode": "lines", "name": label, "meta": number, "yaxis": "y2", "hoverinfo": "skip",
            "showlegend": False, "x": [x for step in steps for x in (step, step, None)], "y": [0, 1, None] * len(steps),
            "line": {"color": colour, "width": 1, "dash": dash}, "opacity": 0.8}  # fmt: skip


def _layout(name: str, curves: Sequence[Curve], several: bool) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "tickfont": {"size": 11}}
    steps = {
        "title": {"text": "step", "font": {"size": 11}, "standoff": 4},
        "hoverformat": ",d",
        "unifiedhovertitle": {"text": "step %{x:,d}"},
        "spikecolor": _GREY,
        "spikethickness": 1,
        "spikedash": "dot",
    }
    return {
        "xaxis": axis | steps,
        "yaxis": axis | {"type": "log" if _spans_decades(name, curves) else "linear", "nticks": 7},
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "showlegend": not several and len(curves) > 1,
    }


def _spans_decades(name: str, curves: Sequence[Curve]) -> bool:
    """Whether a loss or a norm is easier to read on a logarithmic axis."""
    if name != "grad_norm" and "loss" not in name:
        return False
    values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
    return bool(len(values) and values.min() > 0 and values.max() > 100 * values.min())
