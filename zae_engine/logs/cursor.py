"""How far a logger has got: ``loggers/NAME.json`` in the run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import folder_in, read_json, write_text
from .loggers.logger import Logger


@dataclass
class Cursor:
    """What one logger has of a run.

    Attributes
    ----------
    logger : str
        Its name.
    id : str or None
        The run's, at the logger's service.
    step : int
        All records up to this step have been delivered.
    settings : dict
        The user's, as far as they are plain and no secrets: `sync` opens the same run with them.
    status : str
        How it was closed: ``'done'``, ``'failed'``, ``'interrupted'``; ``'open'`` meanwhile, and after a kill.
    part : int
        Up to which part of that step's records; see `Record`.
    """

    logger: str
    id: str | None = None
    step: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    status: str = "open"
    part: int = 0

    @classmethod
    def load(cls, folder: Path, name: str) -> Cursor:
        """The one of a run folder, or a new one where there is none that can be read."""
        try:
            values = read_json(path_of(folder, name))
            known = int(values["step"]), dict(values["settings"]), str(values["status"]), int(values.get("part", 0))
            return cls(name, values["id"], *known)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return cls(name)

    @property
    def place(self) -> tuple[int, int]:
        """The step and part of the last record that has been delivered."""
        return self.step, self.part

    @place.setter
    def place(self, place: tuple[int, int]) -> None:
        self.step, self.part = place

    def correct(self, logger: Logger) -> None:
        """Believe the logger: a kill may have come between its file and this note."""
        step, part = logger.last_step(), logger.last_part()
        if step is not None:
            self.place = (step, part if part is not None else self.part if step == self.step else 0)

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all; not flushed to the disk, since it can be found out again."""
        path = path_of(folder, self.logger)
        folder_in(folder, path.parent.name)
        write_text(path, json.dumps(asdict(self), indent=1), sync=False)


def path_of(folder: Path, name: str) -> Path:
    """Where a logger's cursor lies."""
    return folder / "loggers" / f"{name}.json"


def cursors_in(folder: Path) -> list[Cursor]:
    """Those of all loggers that a run folder has known."""
    there = sorted(path for path in (folder / "loggers").glob("[!.]*.json") if path.is_file() and not path.is_symlink())
    return [Cursor.load(folder, path.stem) for path in there]
