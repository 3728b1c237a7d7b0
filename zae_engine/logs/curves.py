"""``curves.png``: a run folder as a picture, and the same picture of rows in memory. Knows matplotlib when it draws."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing
from .reading import Run, read_run

if TYPE_CHECKING:
    from .curves_picture import Picture

CURVES = "curves.png"


def draw_curves(run: Run | str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Draw a run: losses, metrics, gradient norm and learning rate over the steps, with marks where it went on.

    The picture is there whole or not at all, so that a viewer never meets half of it. Any thread may call this.

    Parameters
    ----------
    run : Run or path-like
        A run, or its folder.
    path : path-like, optional
        Where the picture goes; its ending decides the format. ``curves.png`` in the run folder if not given.

    Returns
    -------
    Path
        Where it is.

    Raises
    ------
    ModuleNotFoundError
        Without matplotlib, with the command that installs it.
    RunFolderError
        When there is no run.
    """
    run = run if isinstance(run, Run) else read_run(run)
    path = Path(path) if path is not None else run.folder / CURVES
    figure = figure_of(run.rows, steps_of(run), resumes_of(run), title=run.name, who=path.name)
    with replacing(path, sync=False) as partial:
        figure.savefig(partial, format=path.suffix[1:] or "png", dpi=120)
    return path


def figure_of(
    rows: Sequence[Mapping[str, Any]],
    steps: Mapping[str, tuple[Any, Any]] | None = None,
    resumes: Sequence[int] = (),
    title: str = "",
    who: str = CURVES,
) -> Picture:
    """Return the figure of a run, as `draw_curves` saves it.

    Parameters
    ----------
    rows : sequence of mappings
        Rows of a history.
    steps : mapping, optional
        Quantity (``loss``, ``lr``, …) → steps and values, both one-dimensional and of one length.
    resumes : sequence of int
        The steps at which the run went on.
    title : str
        Above all.
    who : str
        What needs matplotlib, for the message.

    Raises
    ------
    ModuleNotFoundError
        Without matplotlib, with the command that installs it.
    """
    try:
        from .curves_picture import draw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{who} needs matplotlib; install it: pip install 'zae-engine[plot]'") from error
    return draw(rows, steps, resumes, title)


def steps_of(run: Run) -> dict[str, tuple[Any, Any]]:
    """What a run has of each step, and what the points have of others: the learning rate, and means since the last."""
    steps: dict[str, tuple[Any, Any]] = {name: (series.step, series.value) for name, series in run.steps.items()}
    means = [(point["step"], {**(point.get("train") or {}), "lr": point.get("lr")}) for point in run.points]
    if means:
        steps.pop("lr", None)  # a value of that name has its mean in the rows; this is the optimizer's
        means += [(row.get("step"), {"lr": row.get("lr")}) for row in run.rows]
    found = dict[str, dict[int, float]]()
    for step, mean in means:
        for name, value in mean.items() if step else ():
            if value is not None and name not in steps:
                found.setdefault(name, {})[step] = float(value)
    return steps | {name: (sorted(known), [known[step] for step in sorted(known)]) for name, known in found.items()}


def resumes_of(run: Run) -> list[int]:
    """The steps at which a run went on; those from which it later went back further are no longer among them."""
    begun = [attempt.get("step") or 0 for attempt in run.attempts]
    return sorted({step for i, step in enumerate(begun) if step and step <= min(begun[i:])})
