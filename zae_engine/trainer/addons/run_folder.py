"""The base of add-ons that keep a run in a folder; several of them in a stack share the one folder."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import nn

from .. import refusals
from ..compose import AddOnBase
from ..data.plan import named
from ..interface import Face
from ..journal.journal import Journal
from ..journal.settings import circumstances_of, data_of, settings_of
from ..limits import read_interval
from ..loop.companion import Companion
from ..options import fixed
from ..records.recorder import Recorder
from ..step.placement import Placement


class RunFolderAddon(AddOnBase, Face):
    """Writes ``run.json`` and ``history.jsonl``, and what is made of them: the picture, the summary.

    Parameters
    ----------
    save_path : path-like, optional
        The run's folder, of one run only; None makes a new one below ``runs/``.
    log_every : int, str or timedelta
        ``'1%'``: what reading the steps' values, writing them and giving them to the loggers may take of the time. Each
        step is a record, as long as that suffices; else a record is the mean of several. Or how often they are read:
        ``'10s'``, ``'50st'``, ``'1ep'``; an integer counts steps; then a record is the mean since the last one. No
        value is lost between. The end of an epoch and a checkpoint always count.
    """

    save_path: Path = fixed()
    log_every: Any = fixed()

    _keeps_lines = True
    # The trainer's.
    model: nn.Module
    test_metrics: dict[str, float]
    _place: Placement
    _recorder: Recorder
    _companions: list[Companion]

    def __init__(
        self,
        *args: Any,
        save_path: str | os.PathLike[str] | None = None,
        log_every: int | str | timedelta = "1%",
        **kwargs: Any,
    ) -> None:
        interval = read_interval(log_every, "log_every")
        if save_path is not None and (not isinstance(save_path, (str, os.PathLike)) or not str(save_path)):
            raise TypeError(f"save_path={save_path!r} is not accepted; give the folder of this run, 'runs/first' say")
        super().__init__(*args, **kwargs)
        self.save_path = Path(save_path if save_path is not None else self._new_folder())
        self.log_every = log_every
        self._journal = Journal(self.save_path.absolute(), self._place, self._recorder, interval)
        self._companions.append(self._journal)
        self._settings = dict[str, Any]()

    def _new_folder(self) -> str:
        name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{type(self).__name__.partition('+')[0]}"
        folder, number = name, 1
        while Path(folder).exists():
            number += 1
            folder = f"{name}-{number}"
        path: str = self._place.processes.from_first(folder)
        return path

    def run(self, n_epoch: Any = None, loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
        """Run, and write down what happens."""
        if self.mode == "test":
            history = super().run(n_epoch, loader, valid_loader, **options)
            self._journal.value_came()
            self._journal.readers.tell({"evaluation": dict(self.test_metrics)})
            return history
        self._refuse_session()
        if not self._journal.is_open:
            self._check_call(loader, valid_loader, options)
            self._note_settings()
            self._note_facts(loader, valid_loader, {"n_epoch": n_epoch, **options})
        with self._journal.holding(), self._journal.opened(self):
            return super().run(n_epoch, loader, valid_loader, **options)

    def _check_call(self, loader: Any, valid_loader: Any, options: dict[str, Any]) -> None:
        """Refuse what needs no run to be refused, so that no folder of a failed one is left."""
        refusals.check_run_options(type(self), options)
        refusals.check_loader(loader, "loader")
        for name, each in named(valid_loader).items():
            refusals.check_loader(each, f"valid_loader {name!r}" if name else "valid_loader")

    def _refuse_session(self) -> None:
        if getattr(self, "_forks", False):
            names = ", ".join(c.__name__ for c in getattr(self, "_add_ons", ()) if issubclass(c, RunFolderAddon))
            raise TypeError(
                f"in a session, {names} has to run in the processes that MultiGPUAddon starts; write"
                f" add_on({names}, MultiGPUAddon)"
            )

    @property
    def _kept(self) -> dict[str, Any]:
        """What a session has to know of the calls of `run` that its workers made."""
        return self._journal.memory

    @_kept.setter
    def _kept(self, values: dict[str, Any]) -> None:
        self._journal.memory = values

    def _note_settings(self) -> None:
        """Note, before anything is loaded or trained, what the result depends on."""
        self._place.prepare(self)
        if not self._settings:
            self._settings = settings_of(self, self._place.modes)
            self._journal.facts = (self._settings, circumstances_of(self, self._place.processes.count, {}))

    def _note_facts(self, loader: Any, valid_loader: Any, calls: dict[str, Any]) -> None:
        """Note what this call is given."""
        batch = self._place.plan(self, loader).batch_size or 0
        calls["valid_loader"] = None if valid_loader is None else type(valid_loader).__name__
        circumstances = circumstances_of(self, self._place.processes.count, calls)
        self._journal.facts = ({**self._settings, **data_of(loader, batch)}, circumstances)
