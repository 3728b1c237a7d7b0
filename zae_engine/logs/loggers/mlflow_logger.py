"""A run of MLflow: in a SQLite file of the run folder, or wherever ``MLFLOW_TRACKING_URI`` or the settings say."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from ...checkpoint.best_rule import is_better
from ..history_file import FOLDER_OF_PICTURES
from .logger import Logger, Record, RunInfo, flat
from .registry import check_settings, installed

_SETTINGS = ("artifact_location", "experiment", "log_model", "run_name", "tags", "tracking_uri")
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# mlflow.utils.validation: what a store takes in one batch, and how long a name and a value may be.
_METRICS, _PARAMS, _NAME, _VALUE = 1000, 100, 250, 6000


class MLflowLogger(Logger):
    """Metrics in batches, the configuration as params; over an `MlflowClient`, so a run that is active stays so.

    ``best/test/loss`` (of whatever tells the best) is its best so far, so that MLflow's table sorts runs by it.
    NaN is kept; MLflow keeps an infinity as the largest number there is. A name that it refuses is changed to one
    that it takes, ``acc@5`` to ``acc_5``. Params cannot be changed: of a resumed run, those that are other than
    before become tags ``resumed/NAME``. MLflow itself sends usage data to its makers, unless
    ``MLFLOW_DISABLE_TELEMETRY=true`` is set.

    Parameters
    ----------
    tracking_uri : str, optional
        Setting: the store. By default that of ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the run folder.
    experiment : str, optional
        Setting: by default that of ``MLFLOW_EXPERIMENT_NAME``, else the run's name; made where it is missing.
    artifact_location : str, optional
        Setting: where a new experiment keeps files; ``mlflow-artifacts`` in the run folder for a store in there.
    run_name : str, optional
        Setting: the run's name there.
    tags : mapping, optional
        Setting: texts by name.
    log_model : bool, optional
        Setting: whether the best weights are kept as an artifact.

    Attributes
    ----------
    client : MlflowClient
        Of the store.
    run_id : str
        The run's there.
    """

    name: ClassVar[str] = "mlflow"
    module: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"
    labels = frozenset({"experiment", "log_model", "run_name", "tags"})
    paths = frozenset({"artifact_location", "tracking_uri"})
    variables: ClassVar[Mapping[str, str]] = {"tracking_uri": "MLFLOW_TRACKING_URI"}
    places = ("mlflow.db*", "mlflow-artifacts")
    takes: ClassVar[tuple[str, ...]] = ("texts", "pictures")
    run_id: str

    def check(self) -> None:
        """Refuse settings that there are not, and a SQLite store without what it needs."""
        check_settings(type(self), self.settings, _SETTINGS)
        for name in ("artifact_location", "experiment", "run_name", "tracking_uri"):
            if not isinstance(value := self.settings.get(name, ""), str):
                raise TypeError(f"{name}={value!r} of the mlflow logger is no text; write {name}='…'")
        if not isinstance(tags := self.settings.get("tags", {}), Mapping):
            raise TypeError(f"tags={tags!r} of the mlflow logger are no mapping; write tags={{'team': 'vision'}}")
        missing = [name for name in ("sqlalchemy", "alembic") if not installed(name)]
        if missing and (self._uri() or "sqlite:").startswith("sqlite:"):
            raise ModuleNotFoundError(
                f"MLflow keeps runs in a SQLite file with {' and '.join(missing)}, which is not installed: "
                "pip install 'zae-engine[mlflow]'",
                name=missing[0],
            )

    def start(self, info: RunInfo) -> str:
        """Open the store and the run in it; a run that is not there any more is begun anew."""
        uri = self._uri() or "sqlite:///" + quote((info.folder / "mlflow.db").as_posix())
        self.client = (self.open_client or _open)({**self.settings, "tracking_uri": uri})
        self._names: dict[str, str] = {}
        self._waiting: list[tuple[int, list[Any]]] = []  # step, metrics
        run = self._known(info.id, uri) or self._new(info)
        self.run_id = run.info.run_id
        self._last = self._offered = max((metric.step for metric in run.data._metric_objs), default=0)
        self._watch(run, *info.monitor)
        self._keep_config(info, run.data.params)
        return self.run_id

    def last_step(self) -> int | None:
        """The last step of any metric in the store."""
        return self._last

    def watch(self, name: str, mode: str) -> None:
        """Have the best of another value from now on."""
        self._watch(self.client.get_run(self.run_id), name, mode)

    def _watch(self, run: Any, name: str, mode: str) -> None:
        self._monitor, self._mode = name, mode
        self._best = run.data.metrics.get(_fitting(f"best/{name}"))

    def log(self, record: Record) -> None:
        """Keep one record for the next `flush`: a batch costs hardly more than one record does."""
        from mlflow.entities import Metric

        if record.step <= self._offered and not record.part:
            return
        self._keep_files(record)
        time, values = int(record.time * 1000), record.values | self._better(record)
        metrics = [Metric(self._fit(name), value, time, record.step) for name, value in values.items()]
        self._waiting.append((record.step, metrics))
        self._offered = record.step
        if len(self._waiting) >= _METRICS:
            self.flush()

    def flush(self) -> None:
        """Send what waits; a record's values in one batch, so that none is kept in part."""
        while self._waiting:
            count, metrics = 0, list[Any]()
            while count < len(self._waiting) and (not count or len(metrics) + len(self._waiting[count][1]) <= _METRICS):
                metrics += self._waiting[count][1]
                count += 1
            for part in _parts(metrics, _METRICS):
                self.client.log_batch(self.run_id, metrics=part)
            self._last = self._waiting[count - 1][0]
            del self._waiting[:count]

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Note the summary as tags ``summary/NAME``."""
        self._tag({f"summary/{name}": value for name, value in flat(summary)})

    def keep_file(self, path: Path) -> None:
        """Keep the best weights as an artifact, with ``log_model=True``."""
        if self.settings.get("log_model"):
            self.client.log_artifact(self.run_id, str(path))

    def finish(self, status: str) -> None:
        """Send what waits and note how the run ended: FINISHED, FAILED or KILLED."""
        self.flush()
        self.client.set_terminated(self.run_id, _STATUS[status])

    def _keep_files(self, record: Record) -> None:
        """Texts and pictures, as artifacts whose names have the step; one that is there is the same."""
        for name, text in record.texts.items():
            self.client.log_text(self.run_id, text, f"texts/{_fitting(name)}/{record.step:09d}.txt")
        for name, path in record.pictures.items():
            self.client.log_artifact(self.run_id, str(path), f"{FOLDER_OF_PICTURES}/{_fitting(name)}")

    def _uri(self) -> str:
        return str(self.settings.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or "")

    def _known(self, id: str | None, uri: str) -> Any:
        """The run of before, running again; None where there is none."""
        from mlflow.exceptions import MlflowException

        if id is None:
            return None
        try:
            run = self.client.get_run(id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.say(f"the MLflow store {uri} has no run {id}; all of it is logged to a new one")
            return None
        self.client.update_run(id, status="RUNNING")
        return run

    def _new(self, info: RunInfo) -> Any:
        name = self.settings.get("experiment") or os.environ.get("MLFLOW_EXPERIMENT_NAME") or info.name
        own = None if self._uri() else (info.folder / "mlflow-artifacts").as_uri()
        found = self.client.get_experiment_by_name(name)
        place = self.settings.get("artifact_location") or own
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifact_location=place)
        tags = {name: str(value) for name, value in self.settings.get("tags", {}).items()}
        return self.client.create_run(experiment, tags=tags, run_name=self.settings.get("run_name") or info.name)

    def _keep_config(self, info: RunInfo, kept: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        values = {_fitting(name): str(value)[:_VALUE] for name, value in flat(info.config)}
        new = [Param(name, value) for name, value in values.items() if name not in kept]
        for part in _parts(new, _PARAMS):
            self.client.log_batch(self.run_id, params=part)
        self._tag({f"resumed/{name}": value for name, value in values.items() if kept.get(name, value) != value})

    def _tag(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = {_fitting(name): str(value)[:_VALUE] for name, value in values.items()}
        for part in _parts([RunTag(*tag) for tag in tags.items()], _PARAMS):
            self.client.log_batch(self.run_id, tags=part)

    def _better(self, record: Record) -> dict[str, float]:
        value = record.values.get(self._monitor)
        if value is None or not is_better(value, self._best, self._mode):
            return {}
        self._best = value
        return {f"best/{self._monitor}": value}

    def _fit(self, name: str) -> str:
        """The name under which MLflow keeps a value."""
        if name not in self._names:
            self._names[name] = fitting = _fitting(name)
            if fitting != name:
                self.say(f"MLflow allows no value with the name {name!r}; it keeps it as {fitting!r}")
        return self._names[name]


def _fitting(name: str) -> str:
    """Letters, digits, ``_-. :`` and ``/``, as a path that is already its shortest."""
    plain = posixpath.normpath("/" + re.sub(r"[^/\w.\- :]", "_", name)).lstrip("/")
    return plain[:_NAME].rstrip("/") or "_"


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _open(settings: dict[str, Any]) -> Any:
    quiet = logging.getLogger("mlflow.store.db.utils")  # which tells of each table that it makes
    if quiet.level == logging.NOTSET:
        quiet.setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(settings["tracking_uri"])
