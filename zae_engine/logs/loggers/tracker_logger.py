"""Any tracker of Accelerate's: aim, clearml, comet_ml, dvclive, swanlab and others, and whatever a user derives.

The tracker itself is used, and never `Accelerator.end_training`, which would take down the process group.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from ..trust import is_name
from .logger import Logger, Record, RunInfo, flat
from .registry import check_settings, hint, installed

# How each goes on with a run: where its client has the run's id, and what it takes with it when it starts.
_RESUME: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "aim": ("hash", lambda id: {"run_hash": id}),
    "clearml": ("id", lambda id: {"continue_last_task": id}),
    "comet_ml": ("id", lambda id: {"experiment_key": id}),
    "dvclive": ("", lambda id: {"resume": True}),
    "mlflow": ("info.run_id", lambda id: {"run_id": id}),
    "swanlab": ("id", lambda id: {"id": id, "resume": "allow"}),
    "wandb": ("id", lambda id: {"id": id, "resume": "allow"}),
}
_FOLDER = {"dvclive": "dir", "swanlab": "logdir"}  # the setting that moves their files into the run folder


class TrackerLogger(Logger):
    """Its `start`, `store_init_configuration`, `log` and `finish` are called, by one thread of the main process.

    A run goes on in the same run of the service, where the tracker can do that; one of a user's own is started
    again. One that has a method `last_step()` is asked for the last step that it has, so that a kill costs nothing.
    How a run ended is not told: a tracker has no place for it.

    Parameters
    ----------
    log_with : str, type or GeneralTracker
        Setting: a name that Accelerate knows (`register_tracker_class` adds to them), a class, or a tracker.
    project : str, optional
        Setting: what the class gets first; by default the run's name.
    logging_dir : path-like, optional
        Setting: for classes that need one; by default ``tracker/`` in the run folder.
    **settings
        Others go to the class.

    Attributes
    ----------
    client : Any
        The tracker's ``tracker``: the service's own run.
    """

    name: ClassVar[str] = "tracker"
    tracker: Any = None
    labels = frozenset({"log_with"})
    paths = frozenset({"logging_dir"})
    places = ("tracker", "dvclive", "swanlab")

    @classmethod
    def admits(cls, name: str, value: Any) -> bool:
        """The project becomes a folder's name."""
        return super().admits(name, value) or (name == "project" and is_name(value))

    def check(self) -> None:
        """Refuse a name that Accelerate does not know, a class that is no tracker, a client that is missing."""
        found = _found(self.settings.get("log_with"))
        if not isinstance(found, type):
            check_settings(type(self), self.settings, ("log_with",))
            return
        _check_names(found, self._further())
        if found.__module__ == "accelerate.tracking":
            _check_client(str(getattr(found, "name", "")))

    def start(self, info: RunInfo) -> str:
        """Make the tracker, start it, and give it the configuration, as flat plain values."""
        from accelerate import PartialState

        PartialState(cpu=True)  # trackers look there which process they are on; the training has made it already
        found = _found(self.settings["log_with"])
        self.tracker = tracker = self._make(found, info) if isinstance(found, type) else found
        tracker.start()
        self.client = tracker.tracker
        config = {name: _plain(value) for name, value in flat(info.config)}
        if info.id is None:
            tracker.store_init_configuration(config)
        else:
            self._store_again(config)
        return self._id()

    def last_step(self) -> int | None:
        """What the tracker's own `last_step` says, where it has one."""
        ask = getattr(self.tracker, "last_step", None)
        return ask() if callable(ask) else None

    def log(self, record: Record) -> None:
        """Hand one record to the tracker."""
        self.tracker.log(dict(record.values), step=record.step)

    def flush(self) -> None:
        """Flush the tracker, where it has a method for that."""
        flush = getattr(self.tracker, "flush", None)
        if callable(flush):
            flush()

    def finish(self, status: str) -> None:
        """Finish the tracker."""
        self.tracker.finish()

    def _further(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.settings.items() if name not in ("log_with", "project", "logging_dir")
        }

    def _make(self, found: type, info: RunInfo) -> Any:
        name = str(getattr(found, "name", ""))
        further = self._further()
        if name in _FOLDER:
            further = {_FOLDER[name]: str(info.folder / name)} | further
        if info.id is not None and name in _RESUME:
            further |= _RESUME[name][1](info.id)
        place = self.settings.get("logging_dir", info.folder / "tracker")
        first = (self.settings.get("project", info.name), *((str(place),) if _needs_folder(found) else ()))
        return found(*first, **further)

    def _id(self) -> str:
        value = self.client
        for part in _RESUME.get(str(self.tracker.name), ("", None))[0].split("."):
            value = getattr(value, part, None) if part else None
        return str(value or self.tracker.name)

    def _store_again(self, config: dict[str, Any]) -> None:
        """Some services refuse what has changed since the run began."""
        try:
            self.tracker.store_init_configuration(config)
        except Exception as error:
            words = str(error).strip() or type(error).__name__
            self.say(f"{self.tracker.name} keeps the configuration of before: {words.splitlines()[0]}")


def _found(log_with: Any) -> Any:
    """A class or a tracker."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    if isinstance(log_with, GeneralTracker) or (isinstance(log_with, type) and issubclass(log_with, GeneralTracker)):
        return log_with
    name = getattr(log_with, "value", log_with)  # of Accelerate's LoggerType
    if not isinstance(name, str):
        raise TypeError(
            f"log_with={log_with!r} is no tracker; {hint('', LOGGER_TYPE_TO_CLASS)}, or give a GeneralTracker"
        )
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"Accelerate has no tracker {name!r}; {hint(name, LOGGER_TYPE_TO_CLASS)}")
    return LOGGER_TYPE_TO_CLASS[name]


def _check_names(found: type, further: Iterable[str]) -> None:
    """Refuse what the class does not take, unless it hands everything on to its client."""
    known = inspect.signature(found).parameters
    if any(each.kind is each.VAR_KEYWORD for each in known.values()):
        return
    for name in further:
        if name not in known:
            raise TypeError(f"{found.__name__} has no setting {name!r}; {hint(name, known)}")


def _check_client(name: str) -> None:
    if not installed(name):  # all of Accelerate's own are called as the module that they need
        raise ModuleNotFoundError(
            f"the {name} tracker needs {name}, which is not installed: pip install {name}", name=name
        )


def _needs_folder(found: type) -> bool:
    return bool(getattr(found, "requires_logging_directory", False))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
