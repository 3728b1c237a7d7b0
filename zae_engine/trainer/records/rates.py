"""The learning rates of an optimizer's groups, by the names that they have in rows and lines."""

from __future__ import annotations

from typing import Any


def rates_of(optimizer: Any) -> dict[str, float]:
    """The learning rate, ``lr``, which is the first group's; of several groups each one's, ``lr/0``, or by its name."""
    groups = optimizer.param_groups if optimizer is not None else []
    if not groups:
        return {"lr": 0.0}
    rates = [float(group.get("lr", 0.0)) for group in groups]
    names = [group.get("name") for group in groups]
    if len(set(map(str, names))) < len(names) or not all(isinstance(n, str) and n.isprintable() for n in names):
        names = list(range(len(groups)))
    several = {f"lr/{name}": rate for name, rate in zip(names, rates, strict=True)} if len(groups) > 1 else {}
    return {"lr": rates[0], **several}
