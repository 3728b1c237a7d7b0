"""Neptune, by its own client: its data on this disk, or on a server of one's own, since the hosted one is no more."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
import shlex
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ...files import lines_of
from ..client_streams import keep_apart
from .logger import Logger, Record, RunInfo
from .network import unreachable
from .registry import check_settings

_OLD = {"project_name": "project", "api_tkn": "api_token"}  # of zae-engine 0.7.6
_OWN = ("log_model",)
_SERIES = ('"LogFloats"', '"LogStrings"', '"LogImages"')  # as its files name what is appended to a series
# What neptune.init_run takes, in its last version; importing it takes 2 s, too long for a check.
INIT_RUN = (
    *("with_id", "project", "api_token", "custom_run_id", "mode", "name", "description", "tags", "source_files"),
    *("capture_stdout", "capture_stderr", "capture_hardware_metrics", "fail_on_exception", "monitoring_namespace"),
    *("flush_period", "proxies", "capture_traceback", "git_ref", "dependencies", "async_lag_callback"),
    *("async_lag_threshold", "async_no_progress_callback", "async_no_progress_threshold"),
)
_MODES = ("offline", "async", "sync", "debug")
# source_files, dependencies and git_ref choose what is read and sent, api_token and proxies where to
_LABELS = set(INIT_RUN) - {"api_token", "proxies", "source_files", "dependencies", "git_ref"}
_STOP = 20.0  # seconds that closing waits for a server
_DATA = "NEPTUNE_DATA_DIRECTORY"
_environment = threading.Lock()  # two loggers of one process may start at once


class NeptuneLogger(Logger):
    """One Neptune run, kept offline in ``.neptune/`` of the run folder unless a server of one's own is named.

    Neptune's hosted service was shut down on 2026-03-05. So a token of that service opens nothing, and is not used; one
    of a self-hosted server, which names it, is. Offline pieces of one run, one an attempt, share an id, and so
    ``neptune sync`` makes one run of them.

    Parameters
    ----------
    project, api_token : str, optional
        Settings, also written ``project_name`` and ``api_tkn``; by default ``NEPTUNE_PROJECT``, ``NEPTUNE_API_TOKEN``.
    mode : {'offline', 'async', 'sync', 'debug'}, optional
        Setting: by default ``NEPTUNE_MODE``, else ``'async'`` with a self-hosted server and ``'offline'`` without one.
    log_model : bool, optional
        Setting: keep the best weights as ``model/best``.
    **settings
        Whatever ``neptune.init_run`` takes. What it captures (stdout, hardware, …) is off by default.

    Attributes
    ----------
    client : neptune.Run
    """

    name: ClassVar[str] = "neptune"
    module: ClassVar[str] = "neptune"
    extra: ClassVar[str] = "neptune"
    takes: ClassVar[tuple[str, ...]] = ("texts", "pictures")
    labels = frozenset({*_LABELS, "project_name", *_OWN})
    variables: ClassVar[Mapping[str, str]] = {"api_token": "NEPTUNE_API_TOKEN", "api_tkn": "NEPTUNE_API_TOKEN"}
    places = (".neptune",)

    @classmethod
    def admits(cls, name: str, value: Any) -> bool:
        """Less than usual may be looked at, not more."""
        return super().admits(name, value) or (name in ("git_ref", "source_files") and value in (False, []))

    def check(self) -> None:
        """Refuse what ``neptune.init_run`` would not take."""
        check_settings(type(self), self.settings, [*INIT_RUN, *_OLD, *_OWN])
        for old, new in _OLD.items():
            if old in self.settings and new in self.settings:
                raise TypeError(f"the neptune logger got both {new!r} and {old!r}, its old name; give {new!r} only")
        mode = self.settings.get("mode")
        if mode is not None and mode not in _MODES:
            raise ValueError(f"mode={mode!r} of the neptune logger is none of {', '.join(map(repr, _MODES))}")
        if not isinstance(self.settings.get("log_model", False), bool):
            raise TypeError(f"log_model={self.settings['log_model']!r} of the neptune logger must be True or False")

    def start(self, info: RunInfo) -> str:
        """Open the run, or a further piece of it; its id is chosen here."""
        neptune = _neptune()
        self._folder, self._kept, self._earlier = info.folder, dict[str, int](), False
        chosen = self._parameters(info)
        with _quiet():
            self.client = self._opened(neptune, chosen)
        if getattr(self.client, "_mode", None) == "offline" and self.open_client is None:
            pieces = _pieces(self.client)
            self._kept, self._earlier = _kept(pieces), len(pieces) > 1
        from neptune.utils import stringify_unsupported

        self.client["config"] = stringify_unsupported(info.config)
        return str(chosen.get("custom_run_id") or chosen["with_id"])

    def last_step(self) -> int | None:
        """Of an offline run. The last record may be there in part, so it is asked for once more and completed."""
        return max(self._kept.values(), default=1) - 1 if self._earlier else None

    def log(self, record: Record) -> None:
        """Append each value to its series, at the record's step and time."""
        for key, value in record.values.items():
            if not math.isfinite(value):
                self.say("Neptune takes neither NaN nor infinities, so such values are left out")
            elif record.step > self._kept.get(key, -1):
                self.client[key].append(value, step=record.step, timestamp=record.time)
        for key, further in (*record.texts.items(), *_pictures(record)):
            if record.step > self._kept.get(key, -1):
                self.client[key].append(further, step=record.step, timestamp=record.time)
        self.flush()  # what waits when a loader forks its workers, Neptune's own runs write once more in each

    def flush(self) -> None:
        """Write to the disk what is waiting; not to a server, which may take long."""
        self.client.wait(disk_only=True)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Keep it as ``summary/…``."""
        from neptune.utils import stringify_unsupported

        self.client["summary"] = stringify_unsupported(dict(summary))

    def keep_file(self, path: Path) -> None:
        """Keep the best weights, when `log_model` is set; an offline run has their path until it is synchronised."""
        if self.settings.get("log_model"):
            self.client["model/best"].upload(str(path))

    def finish(self, status: str) -> None:
        """Close the run, with ``status``; a failed one has Neptune's ``sys/failed``, too."""
        if self.client is None:
            return
        try:
            self.client["status"] = status
            if status == "failed":
                self.client["sys/failed"] = True
        finally:
            with _quiet():
                self.client.stop(seconds=_STOP)

    # ------------------------------------------------------------------ opening

    def _parameters(self, info: RunInfo) -> dict[str, Any]:
        """The final keyword arguments of ``neptune.init_run``, but for the mode."""
        given = {_OLD.get(key, key): value for key, value in self.settings.items() if key not in _OWN}
        given = {key: value for key, value in given.items() if value not in (None, "")}
        captured = dict.fromkeys((f"capture_{n}" for n in ("stdout", "stderr", "hardware_metrics", "traceback")), False)
        chosen = {"name": info.name, **captured, **given}
        if "with_id" not in chosen:
            own = chosen.get("custom_run_id") or os.environ.get("NEPTUNE_CUSTOM_RUN_ID")
            chosen["custom_run_id"] = info.id or own or uuid.uuid4().hex
        return chosen

    def _opened(self, neptune: Any, chosen: dict[str, Any]) -> Any:
        mode, why = self._mode(chosen)
        chosen["mode"] = mode
        if mode in ("async", "sync"):
            try:
                return self._init(neptune.init_run, chosen)
            except neptune.exceptions.NeptuneException as error:
                why, chosen["mode"] = f"the server refuses it ({type(error).__name__})", "offline"
        if why:
            place = shlex.quote(str(self._folder))
            self.say(
                f"{why}, so the run is kept offline in {place}; `zae logs export {place} --to tensorboard` (or wandb, "
                "mlflow, …) brings it elsewhere"
            )
        if chosen["mode"] != "offline":
            return self._init(neptune.init_run, chosen)
        chosen.pop("with_id", None)
        chosen.setdefault("custom_run_id", uuid.uuid4().hex)
        return self._init(_offline_run(neptune), chosen)

    def _init(self, init: Any, chosen: dict[str, Any]) -> Any:
        with _data_in(self._folder):
            if self.open_client is None:
                return init(**chosen)
            run = self.open_client(chosen)
        if not hasattr(run, "stop") or not hasattr(run, "wait"):
            raise TypeError(f"init_neptune(params) returned {run!r}; return the run: neptune.init_run(**params)")
        return run

    def _mode(self, chosen: dict[str, Any]) -> tuple[str, str]:
        """The mode and, when it is not the one that was asked for, why."""
        mode = chosen.get("mode") or os.environ.get("NEPTUNE_MODE")
        if mode in ("offline", "debug"):
            return str(mode), ""
        server = server_of(chosen.get("api_token") or os.environ.get("NEPTUNE_API_TOKEN"))
        if server is None:
            return "offline", (
                "Neptune's hosted service was shut down on 2026-03-05 and no token of a self-hosted server is given"
            )
        absent = unreachable(server)
        return ("offline", absent) if absent else (str(mode or "async"), "")


def server_of(token: str | None) -> str | None:
    """The self-hosted server that a token is of; None for none, for the hosted service's, and for what is no token."""
    try:
        values = json.loads(base64.b64decode(str(token or "").strip()))
        url = str(values.get("api_url") or values["api_address"])
        host = urlsplit(url).hostname or ""
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return url if host and not re.search(r"(^|\.)neptune\.ai$", host) else None


def _neptune() -> Any:
    # of a package that it imports; a filter of our own may stay, while catch_warnings would race with other threads
    warnings.filterwarnings("ignore", r"jsonschema\.RefResolver is deprecated", DeprecationWarning)
    import neptune
    import neptune.exceptions

    keep_apart()  # it names its files by chance
    return neptune


def _offline_run(neptune: Any) -> type[Any]:
    """A run of Neptune's whose offline pieces belong together, and which a forked process leaves alone."""
    return type("OfflineRun", (neptune.Run,), {"_get_or_create_api_object": _one_run, "_handle_fork_in_child": _let_go})


def _one_run(run: Any) -> Any:
    """Neptune gives every offline piece an id of its own, and would synchronise each as another run."""
    made = super(type(run), run)._get_or_create_api_object()
    made.id = container(run._custom_run_id)
    return made


def _let_go(run: Any) -> None:
    """Neptune closes the files in a forked process (a loader's worker), which writes twice what was waiting."""
    run._state = type(run._state).STOPPED


def container(name: str) -> str:
    """The id of the offline pieces of a run: its own, where that can be a folder's name."""
    return name if re.fullmatch(r"[A-Za-z0-9-]{1,36}", name) else uuid.uuid5(uuid.NAMESPACE_URL, name).hex


def _pieces(run: Any) -> list[Path]:
    """The folders of an offline run, one an attempt."""
    return sorted(run._op_processor.data_path.parent.glob(f"run__{run._id}__*"))


def _kept(pieces: list[Path]) -> dict[str, int]:
    """The last step of each series, over all offline pieces of a run."""
    kept = dict[str, int]()
    for file in (file for piece in pieces for file in piece.glob("data-*.log")):
        for line in map(bytes.decode, lines_of(file)):
            if any(kind in line for kind in _SERIES) and line.endswith("}"):  # a crash may have cut the last line
                for key, step in _steps(line):
                    kept[key] = max(step, kept.get(key, -1))
    return kept


def _steps(line: str) -> Iterator[tuple[str, int]]:
    try:
        operation = json.loads(line)["obj"]
    except ValueError:
        return
    for value in operation["values"]:
        if value["step"] is not None:
            yield "/".join(operation["path"]), int(value["step"])


def _pictures(record: Record) -> Iterator[tuple[str, Any]]:
    if record.pictures:
        from neptune.types import File

        yield from ((name, File(str(path))) for name, path in record.pictures.items())


@contextmanager
def _data_in(folder: Path) -> Iterator[None]:
    """Have Neptune keep its data in a folder instead of the working directory, unless the user says where."""
    with _environment:
        given = os.environ.get(_DATA)
        os.environ.setdefault(_DATA, str(folder / ".neptune"))
        try:
            yield
        finally:
            if given is None:
                os.environ.pop(_DATA, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Neptune's own lines out of the terminal."""
    logger = logging.getLogger("neptune")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
