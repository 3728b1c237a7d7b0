"""What a figure may be at most, and a table that says which figures are more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A measured figure and its limit.

    Attributes
    ----------
    name : str
        What was measured, and against what.
    figure, at_most : float
    unit : str
        Of both; empty for a ratio.
    """

    name: str
    figure: float
    at_most: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is within its limit, as precisely as it is shown."""
        return float(_shown(self.figure)) <= self.at_most

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        return {"figure": self.figure, "at_most": self.at_most, "unit": self.unit, "met": self.met}


def format_limits(limits: Sequence[Limit]) -> str:
    """Lay them out, and count what is missed."""
    width = max(len(limit.name) for limit in limits)
    lines = [f"{'':<{width}}  {'measured':>9}  {'at most':>8}"]
    for limit in limits:
        missed = "" if limit.met else "  missed"
        figures = f"{_shown(limit.figure):>9}  {_shown(limit.at_most):>8}"
        lines.append(f"{limit.name:<{width}}  {figures}  {limit.unit:<4}{missed}".rstrip())
    missed = [limit.name for limit in limits if not limit.met]
    lines.append(
        f"\n{len(limits) - len(missed)} of {len(limits)} are met" + (f"; missed: {'; '.join(missed)}" if missed else "")
    )
    return "\n".join(lines)


def _shown(figure: float) -> str:
    return f"{figure:.3f}" if figure < 10 else f"{figure:.1f}"
