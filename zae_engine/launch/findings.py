"""What is wrong with a configuration, in words; apart from the file's reader, which imports YAML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..terminal import PrintableError

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """What is wrong at one place of a configuration, and what to write there.

    An error is what stops Accelerate, or trains otherwise than the file says; a warning is what it passes over,
    or what this machine cannot do.
    """

    line: int
    key: str
    level: Level
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"line {self.line}: {self.level}: {where}{self.problem}; {self.remedy}"


class ConfigError(PrintableError, ValueError):
    """A configuration that cannot be used, with what was found in it.

    Parameters
    ----------
    message : str
        The sentence for the user.
    findings : sequence of Finding
        Empty when the file is sound and only this machine, or its environment, does not fit.
    """

    def __init__(self, message: str, findings: Iterable[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = list(findings)
