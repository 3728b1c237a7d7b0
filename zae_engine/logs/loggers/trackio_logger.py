"""A run of Trackio, which keeps all runs of a user in one folder and shows them with ``trackio show``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from .logger import Logger, Record, RunInfo
from .registry import check_settings, installed

# What trackio.init takes, less what is the logger's own to say: config, resume, embed.
_INIT = (
    "project",
    "name",
    "group",
    "space_id",
    "server_url",
    "dataset_id",
    "bucket_id",
    "private",
    "auto_log_gpu",
    "gpu_log_interval",
    "auto_log_cpu",
    "cpu_log_interval",
    "webhook_url",
    "webhook_min_level",
)
_PATIENCE = 10.0  # seconds for its thread to write what it was given, which it does twice a second


class TrackioLogger(Logger):
    """Local unless the settings, or Trackio's own variables, name a Space or a server; no browser, no question.

    Trackio keeps its data in ``TRACKIO_DIR``, by default in Hugging Face's cache, and reads that variable once a
    process; so the data stay there and are not in the run folder. It keeps the time at which it got a record, and
    not how a run ended.

    Parameters
    ----------
    project, name : str, optional
        Settings: by default the run's name, with a number where the project has a run of that name.
    log_model : bool, optional
        Setting: whether the best weights are kept as an artifact.
    **settings
        Others that ``trackio.init`` has: ``space_id``, ``server_url``, ``group``, ``auto_log_gpu`` and more.

    Attributes
    ----------
    client : trackio.run.Run
    """

    name: ClassVar[str] = "trackio"
    module: ClassVar[str] = "trackio"
    extra: ClassVar[str] = "trackio"
    takes: ClassVar[tuple[str, ...]] = ("texts", "pictures")
    labels = frozenset(
        {"project", "name", "group", "private", "auto_log_gpu", "gpu_log_interval", "auto_log_cpu", "cpu_log_interval",
         "webhook_min_level", "log_model"}
    )  # fmt: skip
    variables: ClassVar[Mapping[str, str]] = {
        "space_id": "TRACKIO_SPACE_ID",
        "server_url": "TRACKIO_SERVER_URL",
        "dataset_id": "TRACKIO_DATASET_ID",
        "bucket_id": "TRACKIO_BUCKET_ID",
        "webhook_url": "TRACKIO_WEBHOOK_URL",
    }

    def check(self) -> None:
        """Refuse settings that there are not."""
        check_settings(type(self), self.settings, (*_INIT, "log_model"))
        for name in ("project", "name"):
            value = self.settings.get(name, "x")
            if not isinstance(value, str) or not value:
                raise TypeError(f"{name}={value!r} of the trackio logger is no name; write {name}='digits'")

    def start(self, info: RunInfo) -> str:
        """Open a new run, or the one of that id, whatever it is called by now."""
        if installed("matplotlib"):  # which Trackio looks up at each value, and must not meet while it is half imported
            importlib.import_module("matplotlib.figure")
        project = self.settings.get("project", info.name)
        name = self.settings.get("name", info.name)
        runs = {run.id: run.name for run in _runs(project)}
        name = runs[info.id] if info.id in runs else _free(name, set(runs.values()))
        kept = {key: value for key, value in self.settings.items() if key != "log_model"}
        config = {key.lstrip("_"): value for key, value in info.config.items()}  # it keeps the others for itself
        watch = {"auto_log_cpu": installed("psutil"), "auto_log_gpu": True}  # what it finds anyway, but tells of then
        settings = {**watch, **kept, "project": project, "name": name, "config": config, "embed": False}
        self.client = run = (self.open_client or _open)({**settings, "resume": "allow" if info.id else "never"})
        self._local = run.url is None
        if info.id and run.id != info.id:
            self._other(info.id, project, name, run.id in runs)
        self._last = self._offered = self._kept_step() or 0
        self.say(f"the run is {name!r} of the project {project!r} {self._place()}")
        return str(run.id)

    def last_step(self) -> int | None:
        """The last step in the database; None for a Space or a server."""
        return self._last if self._local else None

    def log(self, record: Record) -> None:
        """Hand one record to Trackio's thread; one that is there already is passed over."""
        if record.step > self._offered or record.part:
            self.client.log({**record.values, **record.texts, **_pictures(record)}, step=record.step)
            self._offered = record.step

    def flush(self) -> None:
        """Wait until Trackio's thread has written what it was given, into a local database.

        Raises
        ------
        RuntimeError
            It has not: it tells of an error by a warning, and goes on without what it could not write.
        """
        end = time.monotonic() + _PATIENCE
        while self._local and self._last < self._offered:
            self._last = self._kept_step() or 0
            if self._last >= self._offered:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"Trackio has kept nothing after step {self._last} {self._place()}")
            time.sleep(0.1)

    def keep_file(self, path: Path) -> None:
        """Keep the best weights as an artifact, with ``log_model=True``."""
        if self.settings.get("log_model"):
            self.client.log_artifact(path, type="model")

    def finish(self, status: str) -> None:
        """Close the run, and wait for its threads; Trackio has no place for a status."""
        self.client.finish()

    def _kept_step(self) -> int | None:
        from trackio.sqlite_storage import SQLiteStorage

        step = SQLiteStorage.get_max_step_for_run(self.client.project, self.client.name, run_id=self.client.id)
        return None if step is None else int(step)

    def _other(self, id: str, project: str, name: str, foreign: bool) -> None:
        if foreign:
            self.client.finish()
            raise RuntimeError(
                f"the project {project!r} of Trackio has a younger run {name!r}, so that run {id} cannot be gone on "
                "with; rename one of them: trackio.Api().runs(project)[…].rename(…)"
            )
        self.say(f"the project {project!r} has no run {id} {self._place()}; all of it is logged to a new one")

    def _place(self) -> str:
        if not self._local:
            return f"at {self.client.url}"
        from trackio.utils import TRACKIO_DIR

        return f"in {TRACKIO_DIR} (`trackio show` shows it)"


def _runs(project: str) -> Iterator[Any]:
    import trackio

    with suppress(ValueError):  # no such project yet
        yield from trackio.Api().runs(project)


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _pictures(record: Record) -> dict[str, Any]:
    if not record.pictures:
        return {}
    import trackio

    return {name: trackio.Image(str(path)) for name, path in record.pictures.items()}


def _open(settings: dict[str, Any]) -> Any:
    import trackio

    with suppress(ImportError, AttributeError):  # of this thread alone: it would print how to open the dashboard
        from trackio import context_vars

        context_vars.current_project.set(settings["project"])
    return trackio.init(**settings)
