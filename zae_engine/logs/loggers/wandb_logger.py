"""Weights & Biases, by its own client: online where there is a key and a network, else offline, never a question."""

from __future__ import annotations

import inspect
import os
import shlex
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...checkpoint.best_rule import is_better
from ..trust import is_name
from .logger import Logger, Record, RunInfo, flat
from .network import no_wandb_reports, unreachable
from .registry import check_settings
from .wandb_account import has_key, refusal
from .wandb_commit import join_rows
from .wandb_file import pieces_of, read_steps, settle
from .wandb_metadata import clean_command
from .wandb_trust import LABELS, settings_in, wandb_admits

_OWN = ("log_model",)
_MODES = ("online", "offline", "disabled", "shared")
_EXIT = {"done": 0, "failed": 1}
_LENT = "script:"  # before the id of a run that the script has opened
_OPENING = threading.Lock()
_OURS: set[str] = set()  # ids of runs that were opened here
_OPEN: set[str] = set()  # of these, the ones that are not closed yet
_AGAIN = 75  # the exit code of an interrupted run: run me again (EX_TEMPFAIL of sysexits.h)
_QUIET = {
    "console": "off",  # wandb would wrap the training's own stdout
    "silent": True,
    "init_timeout": 30.0,
    "finish_timeout": 30.0,
    # wandb-core dies with the process that it serves, and what it has not written by then is lost: 15 s by default
    "x_transaction_log_flush_interval": 1.0,
}


class WandBLogger(Logger):
    """One W&B run. Without settings it works: nobody is asked, and without a key or a network it is kept offline.

    Parameters
    ----------
    project : str, optional
        Setting: by default ``WANDB_PROJECT``, else the run's name.
    mode : {'online', 'offline', 'disabled', 'shared'}, optional
        Setting: by default ``WANDB_MODE``, else what is possible: an API key is looked for where wandb does, and the
        server is asked once. A run that was begun offline goes on so until its files have been uploaded.
    log_model : bool, optional
        Setting: keep the best model as an artifact ``run-ID-model``.
    **settings
        Whatever ``wandb.init`` takes: entity, name, tags, config, dir, id, … Files go into the run folder by default.

    Notes
    -----
    Without settings a run that the script has opened by ``wandb.init`` is used, and left open.

    The summary of the monitored value and of ``test/…loss`` is the best one (``.min`` or ``.max``) and the ``.last``.
    It is kept here: wandb's own is NaN for good once a value was NaN, and starts anew in each piece of an offline run.

    Attributes
    ----------
    client : wandb.Run
    """

    name: ClassVar[str] = "wandb"
    module: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"
    takes: ClassVar[tuple[str, ...]] = ("texts", "pictures")
    labels = LABELS
    paths = frozenset({"dir"})
    variables: ClassVar[Mapping[str, str]] = {"dir": "WANDB_DIR", "settings.base_url": "WANDB_BASE_URL"}
    nested = frozenset({"settings"})
    places = ("wandb", ".wandb")

    @classmethod
    def admits(cls, name: str, value: Any) -> bool:
        """Settings one by one; their address if it is the user's own."""
        return wandb_admits(name, value)

    @classmethod
    def misled_by(cls, folder: Path) -> Path | None:
        """The working directory's settings, of somebody who is inside the folder."""
        return settings_in(folder)

    def check(self) -> None:
        """Refuse what ``wandb.init`` would not take."""
        import wandb

        check_settings(type(self), self.settings, [*inspect.signature(wandb.init).parameters, *_OWN])
        mode = self.settings.get("mode")
        if mode is not None and mode not in _MODES:
            raise ValueError(f"mode={mode!r} of the wandb logger is none of {', '.join(map(repr, _MODES))}")
        if not isinstance(self.settings.get("log_model", False), bool):
            raise TypeError(f"log_model={self.settings['log_model']!r} of the wandb logger must be True or False")

    def start(self, info: RunInfo) -> str:
        """Open the run, or go on with it; the id is chosen here, so that it is the same online and offline."""
        import wandb

        self._info, self._seen = info, set[str]()
        self._best, self._last, self._sense = dict[str, float](), dict[str, float](), dict[str, str]()
        others = wandb.run is not None and wandb.run.id not in _OURS and not (self.settings.keys() - set(_OWN))
        if not is_name(info.id):
            raise ValueError(f"the run folder says that the run is {info.id!r}, which W&B takes for no id")
        lent = info.id is None or info.id.startswith(_LENT)  # else the run is one of its own, and stays it
        self._borrowed = self._shared = others and lent
        self._kept: int | None = None
        self._part: int | None = None
        if self._borrowed:
            self.client = wandb.run
        else:
            self.client = self._opened(wandb, self._parameters(wandb, info))
            _OURS.add(self.client.id)
            if self.gives is not None:
                join_rows(self.client, self.gives)
            self._look_back()
        self.client.define_metric("step", hidden=True)
        if self._borrowed or not isinstance(self.settings.get("config"), (Mapping, type(None))):
            there = dict(self.client.config)
            self.client.config.update({key: value for key, value in info.config.items() if key not in there})
        return f"{_LENT if self._borrowed else ''}{self.client.id}"

    def last_step(self) -> int | None:
        """Of the files of an offline run; of one that is online, what its server has."""
        return self._kept

    def watch(self, name: str, mode: str) -> None:
        """Have the best of another value in the summary, too."""
        self._info = replace(self._info, monitor=(name, mode))
        self._best.pop(name, None)
        self._remember(name)
        for values in self._kept_rows():
            if name in values:
                self._better(name, values[name])
        self._seen.discard(name)

    def last_part(self) -> int | None:
        """As `last_step`, of an offline run."""
        return self._part

    def log(self, record: Record) -> None:
        """Keep a record as one row of the run's history, at its own time."""
        if (
            not record.part and not self._shared and self.client.step > record.step
        ):  # the script logs to it, too: `wandb.log(...)`
            self._shared = True
            self._seen.clear()
        for key in record.values.keys() - self._seen:
            self._define(key)
        values = {**record.values, **record.texts, **_pictures(record)}
        values |= {"step": record.step, "_timestamp": record.time}
        if self._shared or record.part:  # wandb's own steps are the script's, and none of them comes twice
            self.client.log(values)
        else:
            self.client.log(values, step=record.step, commit=True)
        for key in self._sense.keys() & record.values.keys():
            self._note(key, record.values[key])

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Put the summary into the run's, as ``summary/…``; the best one of all attempts among it."""
        self.client.summary.update({key: value for key, value in flat(summary, "summary") if value is not None})
        best, (key, sense) = summary.get("best"), self._info.monitor
        if isinstance(best, Mapping) and isinstance(best.get("value"), (int, float)) and best.get("mode") == sense:
            self.client.summary.update({key: {sense: best["value"], "last": self._last.get(key, best["value"])}})

    def keep_file(self, path: Path) -> None:
        """Keep the best weights as an artifact, when `log_model` is set."""
        if self.settings.get("log_model"):
            import wandb

            artifact = wandb.Artifact(f"run-{self.client.id}-model", type="model")
            artifact.add_file(str(path))
            self.client.log_artifact(artifact, aliases=["latest", "best"])

    def finish(self, status: str) -> None:
        """Close the run with exit code 0, 1 (failed) or 75 (interrupted, which is also marked as preempted)."""
        if self.client is None or self._borrowed:
            return
        if status == "interrupted":
            self.client.mark_preempting()
        try:
            self.client.finish(exit_code=_EXIT.get(status, _AGAIN))
        finally:
            _OPEN.discard(str(self.client.id))
        if getattr(self.client, "offline", False) is True:
            settle(Path(self.client.dir).parent / f"run-{self.client.id}.wandb")

    # ------------------------------------------------------------------ opening

    def _parameters(self, wandb: Any, info: RunInfo) -> dict[str, Any]:
        """The final keyword arguments of ``wandb.init``, but for the mode."""
        given = {key: value for key, value in self.settings.items() if key not in _OWN and value is not None}
        settings = _settings(wandb, given.get("settings"))
        if info.id is not None:  # it goes on, however it was begun
            given = {key: value for key, value in given.items() if key not in ("resume_from", "fork_from", "id")}
        chosen: dict[str, Any] = {
            "id": (info.id or "").removeprefix(_LENT) or settings.run_id or os.environ.get("WANDB_RUN_ID") or _new_id(),
            "dir": settings.root_dir if "root_dir" in settings.model_fields_set else os.environ.get("WANDB_DIR"),
            **({} if given.keys() & {"resume_from", "fork_from"} else {"resume": "allow"}),
            "allow_val_change": True,
            **given,
            "settings": settings,
        }
        chosen["dir"] = str(chosen["dir"] or info.folder)
        # the environment as it is now: wandb itself reads it but once in a process
        if not settings.project:
            project = os.environ.get("WANDB_PROJECT") or wandb.setup().settings.project
            chosen.setdefault("project", project or valid(info.name))
        if not settings.run_name:
            chosen.setdefault("name", os.environ.get("WANDB_NAME") or info.name)
        if isinstance(chosen.get("config"), (Mapping, type(None))):
            chosen["config"] = {**info.config, **(chosen.get("config") or {})}
        return chosen

    def _opened(self, wandb: Any, chosen: dict[str, Any]) -> Any:
        mode, why = self._mode(wandb, chosen)
        if mode == "online":
            try:
                run = self._init(wandb, {**chosen, "mode": mode})
                self.say(f"the run is at {run.url}")
                return run
            except (wandb.errors.CommError, wandb.errors.AuthenticationError, TimeoutError) as error:
                if why or self._info.id is not None or "id" in self.settings:
                    raise  # it has to be online, or under an id, which wandb-core takes for in use from now on
                mode, why = "offline", f"{error}".strip().splitlines()[0]
                chosen = {**chosen, "id": _new_id()}
        if mode != "offline":
            return self._init(wandb, {**chosen, "mode": mode})
        with no_wandb_reports():
            run = self._init(wandb, {**chosen, "mode": mode})
        place = shlex.quote(str(Path(run.dir).parents[1].absolute()))
        self.say(f"{why}, so the run is kept offline; `wandb sync {place}/offline-run-*-{run.id}` uploads it later")
        return run

    def _init(self, wandb: Any, chosen: dict[str, Any]) -> Any:
        with _OPENING:
            # Others in this process are not touched; the first one is wandb.run, as the script may call wandb.log.
            chosen = {"reinit": "create_new" if wandb.run is not None or _OPEN else "finish_previous", **chosen}
            with clean_command(chosen) as cleaned:
                run = (self.open_client or _start)(cleaned)
            _OPEN.add(getattr(run, "id", ""))
        if not hasattr(run, "log") or not hasattr(run, "finish"):
            raise TypeError(f"init_wandb(params) returned {run!r}; it has to return the run: wandb.init(**params)")
        return run

    def _mode(self, wandb: Any, chosen: dict[str, Any]) -> tuple[str, str | None]:
        """The mode and why; for ``'online'`` a reason only when the user chose it."""
        common, settings = wandb.setup().settings, chosen["settings"]
        own = settings.mode if "mode" in settings.model_fields_set else None
        mode = chosen.get("mode") or own or os.environ.get("WANDB_MODE") or (common.mode != "online" and common.mode)
        url = settings.base_url if "base_url" in settings.model_fields_set else common.base_url
        if mode and mode != "online":
            return str(mode), f"mode is {mode!r}"
        key = settings.api_key or has_key(url)
        if mode:
            if not key:
                raise RuntimeError(f"mode='online' needs an API key of {url}: run `wandb login`, or set WANDB_API_KEY")
            return "online", "mode is 'online'"
        if pieces_of(Path(chosen["dir"]), chosen["id"], waiting=True):
            return "offline", "it was begun offline"
        if not key:
            return "offline", f"there is no API key of {url} (`wandb login` keeps one)"
        if why := unreachable(url) or refusal(url, settings.api_key):
            return "offline", why
        return "online", None

    # ------------------------------------------------------------------ what is kept

    def _look_back(self) -> None:
        """Find the last step that is kept, and the best values so far."""
        info, run = self._info, self.client
        pieces, steps = self._pieces_kept(), [-1]
        for values in self._kept_rows():
            steps.append(int(values["step"]))
            for key in values.keys() - self._seen:
                self._remember(key)
            for key in self._sense.keys() & values.keys():
                self._better(key, values[key])
        self._seen.clear()  # the client has yet to be told
        there = run.starting_step - 1 if getattr(run, "resumed", False) else -1
        online = getattr(run, "offline", True) is False and info.id is not None
        self._kept = max(*steps, there, 0) if pieces or there >= 0 or online else None
        self._part = max(0, steps.count(max(steps)) - 1) if self._kept == max(steps) else None

    def _pieces_kept(self) -> list[Path]:
        """The files of an offline run."""
        run = self.client
        return pieces_of(Path(run.dir).parents[2], str(run.id)) if run.dir and not self._borrowed else []

    def _kept_rows(self) -> Iterator[dict[str, Any]]:
        """Their rows, but for the script's own."""
        for path in self._pieces_kept():
            yield from (values for _, values in read_steps(path) if "step" in values)

    def _define(self, key: str) -> None:
        self._remember(key)
        kept_here = {"summary": "none"} if key in self._sense else {}
        if self._shared:
            self.client.define_metric(key, step_metric="step", **kept_here)
        elif kept_here:
            self.client.define_metric(key, **kept_here)
        if key in self._sense and key not in self._best:  # of a run that goes on, its server may know more
            before = self.client.summary.get(key)
            self._better(key, before.get(self._sense[key]) if hasattr(before, "get") else None)

    def _remember(self, key: str) -> None:
        monitored, sense = self._info.monitor
        self._seen.add(key)
        if key == monitored or (key.startswith("test/") and key.endswith("loss")):
            self._sense[key] = sense if key == monitored else "min"

    def _note(self, key: str, value: float) -> None:
        self._better(key, value)
        self._last[key] = value
        best = {self._sense[key]: self._best[key]} if key in self._best else {}
        self.client.summary.update({key: {**best, "last": value}})

    def _better(self, key: str, value: Any) -> None:
        if isinstance(value, (int, float)) and is_better(value, self._best.get(key), self._sense[key]):
            self._best[key] = value


def _pictures(record: Record) -> dict[str, Any]:
    if not record.pictures:
        return {}
    import wandb

    return {name: wandb.Image(str(path)) for name, path in record.pictures.items()}


def _start(chosen: dict[str, Any]) -> Any:
    import wandb

    return wandb.init(**chosen)


def valid(name: str) -> str:
    """Make a name one that W&B takes for a project: 128 characters at most, without its special ones."""
    return "".join("-" if letter in "/\\#?%:" else letter for letter in name).strip()[:128] or "zae-engine"


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def _settings(wandb: Any, given: Any) -> Any:
    """The user's ``wandb.Settings``, or its dict, over ours; what the environment says is left to wandb."""
    given = {} if given is None else dict(given) if isinstance(given, Mapping) else _set_ones(given)
    known = wandb.Settings.model_fields
    ours = {k: v for k, v in _QUIET.items() if k in known and f"WANDB_{k.upper()}" not in os.environ}
    return wandb.Settings(**{**ours, **given})


def _set_ones(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.model_fields_set}
