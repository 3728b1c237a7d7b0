"""The base of add-ons that keep a run in a folder; several of them in a stack share the one folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from .. import checks
from ..compose import AddOnBase
from ..data.plan import named
from ..journal.journal import RunLog
from ..journal.settings import circumstances_of, data_of, settings_of
from ..limits import Duration, Interval
from ..options import fixed


class RunFolderAddon(AddOnBase):
    """Writes ``run.json`` and ``history.jsonl``, and what is made of them: the picture, the summary.

    Parameters
    ----------
    save_path : path-like, optional
        The run's folder, of one run only; None makes a new one below ``runs/``.
    log_every : int, str or timedelta
        How often the values of the steps are read: ``'10s'``, ``'50st'``, ``'1ep'``; an integer counts steps. No value
        is lost between. The end of an epoch and a checkpoint always count.
    """

    save_path: Path = fixed()
    log_every: Any = fixed()

    # The trainer's.
    _lines_wanted = True
    _prepare: Callable[[], None]
    _plan: Callable[..., Any]
    _processes: Any
    _open: Any
    test_metrics: dict[str, float]
    _tested_step: float | None
    _spent: Any
    _log_due: bool
    _logging: Interval

    def __init__(
        self,
        *args: Any,
        save_path: str | os.PathLike[str] | None = None,
        log_every: int | str | timedelta = "10s",
        **kwargs: Any,
    ) -> None:
        every = Duration.parse(log_every, "log_every", bare="st")
        if save_path is not None and (not isinstance(save_path, (str, os.PathLike)) or not str(save_path)):
            raise TypeError(f"save_path={save_path!r} is not accepted; give the folder of this run, 'runs/first' say")
        super().__init__(*args, **kwargs)
        self.save_path = Path(save_path if save_path is not None else self._new_folder())
        self.log_every, self._logging = log_every, Interval(every)
        self._run_log = RunLog(self, self.save_path.absolute())
        self._settings = dict[str, Any]()

    def _new_folder(self) -> str:
        name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{type(self).__name__.partition('+')[0]}"
        folder, number = name, 1
        while Path(folder).exists():
            number += 1
            folder = f"{name}-{number}"
        path: str = self._processes.from_first(folder)
        return path

    def run(self, n_epoch: Any = None, loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
        """Run, and write down what happens."""
        if self.mode == "test":
            history = super().run(n_epoch, loader, valid_loader, **options)
            self._run_log.add_own()
            self._run_log.afterwards.tell({"evaluation": dict(self.test_metrics)})
            return history
        self._refuse_session()
        if not self._run_log.is_open:
            self._check_call(loader, valid_loader, options)
            self._note_settings()
            self._note_facts(loader, valid_loader, {"n_epoch": n_epoch, **options})
        with self._run_log.holding(), self._run_log.opened():
            return super().run(n_epoch, loader, valid_loader, **options)

    def _check_call(self, loader: Any, valid_loader: Any, options: dict[str, Any]) -> None:
        """Refuse what needs no run to be refused, so that no folder of a failed one is left."""
        checks.check_run_options(type(self), options)
        checks.check_loader(loader, "loader")
        for name, each in named(valid_loader).items():
            checks.check_loader(each, f"valid_loader {name!r}" if name else "valid_loader")

    def _at_rest(self) -> None:
        log, step = self._run_log, self.progress_checker.get_step() - 1
        if not log.is_open:
            return
        # A validation within the epoch has a row, which no reader may find behind a later step's values.
        if self._log_due or self._open is None or self._tested_step == step or self._logging.at_step(step):
            log.take()

    def _own_came(self) -> None:
        self._run_log.add_own()

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
        return self._run_log.memory

    @_kept.setter
    def _kept(self, values: dict[str, Any]) -> None:
        self._run_log.memory = values

    def _note_settings(self) -> None:
        """Note, before anything is loaded or trained, what the result depends on."""
        self._prepare()
        if not self._settings:
            self._settings = settings_of(self)
            self._run_log.facts = (self._settings, circumstances_of(self, {}))

    def _note_facts(self, loader: Any, valid_loader: Any, calls: dict[str, Any]) -> None:
        """Note what this call is given."""
        batch = self._plan(loader).batch_size or 0
        calls["valid_loader"] = None if valid_loader is None else type(valid_loader).__name__
        self._run_log.facts = ({**self._settings, **data_of(loader, batch)}, circumstances_of(self, calls))
