"""Values in words: which of them ``show=`` names, and the line of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...logs.panels import part_of
from ...suggestions import nearest

Row = Mapping[str, Any]  # of the history
_MANY = 10  # values in one line


def check_show(show: Any) -> tuple[str, ...] | None:
    """Return the names of values that are shown; refuse what are none."""
    names = (show,) if isinstance(show, str) else show
    if names is None or (isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)):
        return None if names is None else tuple(names)
    raise TypeError(f"show={show!r} is not accepted; write the names of values: show=['loss', 'test_acc']")


def is_shown(name: str, quantity: str, show: Sequence[str] | None) -> bool:
    """Whether a value is among those that ``show=`` names, by its own name or by its quantity's."""
    return show is None or name in show or quantity in show


def unknown_in(show: Sequence[str], row: Row) -> str:
    """A sentence about a name that no value of a row has; of a set that was not validated, its quantity counts."""
    quantities = {part_of(name, row)[0] for name in row if name.startswith(("train_", "test_"))}
    missing = [name for name in show if name not in row and part_of(name, row)[0] not in quantities]
    if not missing:
        return ""
    near = nearest(missing[0], quantities)
    there = f"did you mean {near!r}?" if near else f"there are {', '.join(map(repr, sorted(quantities)))}"
    return f"show= names {missing[0]!r}, but no value has that name; {there}"


def epoch_line(title: str, row: Row, speed: float, show: Sequence[str] | None = None, seen: Row | None = None) -> str:
    """One line for an epoch that is done, or a validation within it; many values get a line for each set.

    Parameters
    ----------
    title : str
    row : dict
        Of the history.
    speed : float
        Samples a second.
    show : sequence of str, optional
        Names of the values that are shown, such as ``'test_acc'``, or ``'acc'`` for all sets; by default all are.
    seen : dict, optional
        What of the row has been shown already.
    """
    parts = {name: part_of(name, row) for name in row if name.startswith(("train_", "test_"))}
    names = [name for name, (quantity, _) in parts.items() if is_shown(name, quantity, show)]
    names = [name for name in names if seen is None or seen.get(name) != row[name]]
    rest = f"lr {rates_in_words(row, 2)}  {speed:,.0f} samples/s  {row['seconds']:.1f} s"
    if len(names) <= _MANY:
        return " | ".join([title, *(["  ".join(f"{n} {row[n]:.4g}" for n in names)] if names else []), rest])
    sets: dict[str, list[str]] = {}
    for name in names:
        quantity, kind = parts[name]
        sets.setdefault(kind, []).append(f"{quantity} {row[name]:.4g}")
    width = max(map(len, sets))
    lines = [f"  {kind if not i else '':{width}} | {'  '.join(values[i : i + _MANY])}"
             for kind, values in sets.items() for i in range(0, len(values), _MANY)]  # fmt: skip
    return "\n".join([f"{title} | {rest}", *lines])


def rates_in_words(rates: Mapping[str, Any], digits: int) -> str:
    """The rates of a row, each group's where there are several."""
    shown = {name: rate for name, rate in rates.items() if name.startswith("lr/")} or {"lr": rates["lr"]}
    return " ".join(f"{rate:.{digits}e}" for rate in shown.values() if rate is not None)
