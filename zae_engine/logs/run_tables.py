"""What runs were started with, as tables: settings, their differences, environment; and figures in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .history_file import Line
from .loggers.logger import flat
from .reading import Run

Facts = dict[str, str]

NOTHING = "–"
_ENVIRONMENT = ("zae-engine", "python", "torch", "accelerate", "numpy", "git")
_LONG_NUMBER = re.compile(r"\b\d+\.\d{7,}(?:e[+-]?\d+)?\b")
_SHAPE = re.compile(r"\(([\d, ]*)\)")


def settings_of(run: Run) -> Facts:
    """What decides the result, and the limits of the run, as it was started last."""
    attempt = _last(run)
    around = {k: v for k, v in _dict(attempt.get("circumstances")).items() if not _is_environment(k)}
    facts = {"seed": attempt.get("seed"), **around, **_dict(attempt.get("settings"))}
    if isinstance(facts.get("parameters"), dict):
        facts["parameters"] = _size(facts["parameters"])
    return _texts({name: value for name, value in facts.items() if name != "seed" or value is not None})


def environment_of(run: Run) -> Facts:
    """Where and with what it was computed, as it was started last."""
    attempt = _last(run)
    around = {k: v for k, v in _dict(attempt.get("circumstances")).items() if _is_environment(k)}
    command = attempt.get("command")
    facts = {
        "folder": str(run.folder),
        "host": attempt.get("host"),
        "command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "trainer": attempt.get("trainer"),
        "launch": attempt.get("launch"),
        **around,
    }
    return _texts({name: value for name, value in facts.items() if value is not None})


def table_of(facts: Sequence[Facts], differing: bool = False) -> dict[str, list[str]]:
    """Put facts of several runs side by side: name → a text for each run; `differing` ones only, if wanted."""
    names = dict.fromkeys(name for one in facts for name in one)
    rows = {name: [one.get(name, NOTHING) for one in facts] for name in names}
    return {name: _shorter(texts) for name, texts in rows.items() if not differing or len(set(texts)) > 1}


def _shorter(texts: list[str]) -> list[str]:
    """With numbers in six digits, unless they differ only in further ones."""
    short = [_LONG_NUMBER.sub(lambda found: f"{float(found[0]):.6g}", text) for text in texts]
    return short if len(set(short)) == len(set(texts)) else texts


def _last(run: Run) -> Line:
    return run.started[-1] if run.started else {}


def _is_environment(name: str) -> bool:
    return name in _ENVIRONMENT or name.startswith("the code of ")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(facts: Mapping[str, Any]) -> Facts:
    return {name.removeprefix("the ").replace("/the ", "/").replace("/", ": "): _text(v) for name, v in flat(facts)}


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _size(parameters: Mapping[str, Any]) -> str:
    """How many there are; one whose shape is not known yet counts as a tensor only."""
    shapes = [found[1] for text in parameters.values() if (found := _SHAPE.match(str(text)))]
    count = sum(math.prod(int(n) for n in shape.split(",") if n.strip()) for shape in shapes)
    frozen = sum(str(text).endswith(" frozen") for text in parameters.values())
    return f"{count:,} in {len(parameters):,} tensors" + (f", {frozen:,} of them frozen" if frozen else "")


# ---------------------------------------------------------------------- in words


def clock(seconds: Any) -> datetime | None:
    """Seconds since 1970 as the local time; None for what is no time."""
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def short(value: Any) -> str:
    """A number of a table, in five digits; a dash for none."""
    if value is None or isinstance(value, bool):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}" if isinstance(value, float) else str(value)
