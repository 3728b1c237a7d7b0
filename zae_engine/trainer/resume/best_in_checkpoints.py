"""Where the best weights of a run are: in which of its checkpoints, and beside them in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...checkpoint.disk import digest
from ...checkpoint.documents import read_tensors
from ...checkpoint.folder import CHECKPOINTS, Checkpoint, committed, problems_of
from ...checkpoint.sharded import whole_model
from ..interface import Face
from ..processes.group import Processes, is_sharded
from ..records.best_weights import BestWeights
from ..warn import warn
from .checkpoint_writer import BEST, MODEL, Contents, publish
from .trainer_state import best_of, with_twins

Nest = dict[str, Any]


class BestInCheckpoints:
    """Sees to it that the best weights are in a checkpoint that is kept, and finds them there.

    Parameters
    ----------
    best : BestWeights
        The recorder's.

    Attributes
    ----------
    place : dict or None
        Of the epoch and the serial number of the checkpoint that has them, as plain values.
    """

    def __init__(self, best: BestWeights) -> None:
        self._best = best
        self.place: Nest | None = None
        self._file: Path | None = None  # of a checkpoint that was loaded
        self._written: Any = None  # the very dict of the recorder's weights that is there
        self._monitored: tuple[int, float, bool] | None = None  # step, value, whether it was the best

    def forget_where(self) -> None:
        """They are in no checkpoint of this folder: the next one gets them."""
        self._written = None

    def monitored(self, step: int, value: float, better: bool) -> None:
        """Note the monitored value of a step that is done."""
        self._monitored = (step, value, better)

    def value_at(self, step: int) -> Nest | None:
        """What a checkpoint of this step says of the monitored value; None when it was not looked at."""
        if self._monitored is None or self._monitored[0] != step:
            return None
        name, mode, column = self._best.monitor.watched
        return {"name": column or name, "value": self._monitored[1], "mode": mode}

    def put(self, trainer: Face, processes: Processes, contents: Contents) -> None:
        """See to it that the best weights are in this checkpoint, or in one that it refers to."""
        held, summary = self._best.weights, contents.summary
        spread = is_sharded(trainer.model)
        now = self._monitored is not None and self._monitored[2] and self._monitored[0] == summary["step"]
        # Spread ones are put together by all processes, of which one alone may know that the last save failed.
        if held["weight"] and (now if spread else held["weight"][-1] is not self._written):
            # What was kept then: the model's own weights may be others again, after an add-on has swapped them back.
            best = whole_model(trainer.model, held["weight"][-1]) if spread else held["weight"][-1]
            if best is not None and processes.first:
                contents.private[MODEL if spread else BEST] = {k: v for k, v in best.items() if isinstance(v, Tensor)}
            contents.is_best = True
            self._written = held["weight"][-1]
            self.place = {"epoch": held["epoch"][-1], "serial": summary["serial"]}
        elif not held["weight"]:  # another `monitor` was assigned
            self.place = self._written = None
        if self.place is not None:
            summary["refers_to"] = [self.place["serial"]]
            summary["best"] = {"epoch": self.place["epoch"], "serial": self.place["serial"]}

    def load(self, trainer: Face, processes: Processes, checkpoint: Checkpoint, state: Nest, inside: bool) -> None:
        """Take the best weights of a checkpoint's run; `inside` says whether it is of this run's folder."""
        self._file = self._written = self._monitored = None
        self.place = state["best"] if self._is_comparable(state) else None
        self._best.weights = {"epoch": [], "weight": []}
        if self.place is None:
            return
        holder = _holder(processes, checkpoint, self.place["serial"])
        if holder is None:
            epoch, serial = self.place["epoch"] + 1, self.place["serial"]
            warn(
                f"the best weights (epoch {epoch}) are gone: checkpoint {serial:06d}, which held them, is not there"
                " or is damaged; apply_weights() knows those that come from now on"
            )
            self.place = None
            return
        file = best_of(holder)
        weights = with_twins(trainer.model, read_tensors(file) | state["best_extra"])
        self._best.weights = {"epoch": [self.place["epoch"]], "weight": [weights]}
        if inside:
            self._file, self._written = file, weights

    def _is_comparable(self, state: Nest) -> bool:
        """Whether the best of a checkpoint was told by what tells it now."""
        then, now = state["stack"]["Trainer"].get("monitor"), self._best.monitor.watched
        if not then or [*then[:2]] == now[:2]:
            return True
        if state["best"] is not None:
            was, is_now = (f"{name} ({mode})" for name, mode, _ in (then, now))
            warn(f"the best weights so far are the best by {was}; by {is_now} they are looked for anew from here on")
        return False

    def show(self, folder: Path) -> None:
        """Let the run folder have the best weights of the run that goes on, if a crash came before they were there."""
        source = self._file
        if source is None:
            return
        there = folder / f"{MODEL}{source.suffix}"
        try:
            if there.is_file() and (there.samefile(source) or digest(there) == digest(source)):
                return
        except OSError:  # it is made anew
            pass
        for sentence in publish(source, folder):
            warn(sentence)


def _holder(processes: Processes, checkpoint: Checkpoint, serial: int) -> Checkpoint | None:
    """The whole checkpoint of that number, beside another one."""
    if serial == checkpoint.serial:
        return checkpoint
    return processes.on_first(lambda: _whole_one(checkpoint.path.parent, serial))


def _whole_one(folder: Path, serial: int) -> Checkpoint | None:
    found = next((c for c in committed(folder) if c.serial == serial), None)
    return found if found is not None and not problems_of(found.path) else None


def is_inside(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether a checkpoint is of the run in this folder."""
    return checkpoint.path.parent.resolve() == (folder / CHECKPOINTS).resolve()
