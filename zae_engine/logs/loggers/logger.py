"""What every logger is: it gets records, one a step, from one thread, and keeps them where its service wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class RunInfo:
    """What a logger is told about the run when it starts.

    Attributes
    ----------
    folder : Path
        The run's, absolute; what a logger writes locally goes into it unless its settings say otherwise.
    name : str
        The run's name.
    config : dict
        Nested plain values: ``settings``, ``circumstances``, ``launch``, ``seed``, ``command`` and more. No secrets.
    id : str or None
        What `Logger.start` returned when this run was started before; None for a new run.
    step : int
        Records up to this step have been delivered before, and do not come again; 0 for a new run.
    monitor : (str, str)
        The value that tells the best, ``'test/loss'`` say, and ``'min'`` or ``'max'``. A guess when the training tells
        it: whether that is ``train/acc_epoch`` or ``train/acc`` shows in the first epoch; see `Logger.watch`.
    column : str
        The column of the history's rows that it is, as far as that is known.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    step: int = 0
    monitor: tuple[str, str] = ("test/loss", "min")
    column: str = ""


@dataclass(frozen=True)
class Record:
    """What is known of one step: a logger gets one record a step, with steps that only grow; see `part`.

    Attributes
    ----------
    step : int
        Optimizer steps done.
    time : float
        Seconds since 1970 (UTC).
    values : dict of str to float
        ``train/loss``, ``test/loss``, ``lr``, ``epoch``, ``samples/s``, …; NaN and infinities are possible.
    texts : dict of str to str
        The user's own, as `Trainer.log` got them.
    pictures : dict of str to Path
        The user's own: files in the run's folder.
    part : int
        0, but for what was logged before the first step, or between two calls of `run`, when its step's record was
        whole: then 1, 2, …
    """

    step: int
    time: float
    values: dict[str, float]
    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    part: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """Its step and part, which grow from record to record."""
        return self.step, self.part


class Logger:
    """One service or file format. All methods are called from one thread; whatever they raise ends no training.

    Parameters
    ----------
    settings : mapping
        The user's, out of ``web_logger={"wandb": {...}}``; what is not the logger's own goes to its client.
    open_client : callable, optional
        Opens the client from its final settings, in place of the logger's own way.
    gives : callable, optional
        Takes values of the script's own to the run's history; they come back in records.

    Attributes
    ----------
    name : str
        Its key in ``web_logger``.
    module : str
        The module that has to be installed.
    extra : str
        The optional dependency of this package that installs it; empty when nothing has to be installed.
    takes : tuple of str
        What it keeps beside numbers: ``'texts'``, ``'pictures'``.
    client : Any
        The real client's run, once started, for whoever wants to call it directly.
    labels : frozenset of str
        Settings that are mere names and numbers. A run folder, which may be a stranger's, may say these; any other only
        if the user names it, too.
    paths : frozenset of str
        Settings that are paths or addresses; one that is inside the run folder needs no other word.
    variables : mapping
        The environment variables by which a user names such a setting.
    nested : frozenset of str
        Settings that are looked at one by one, as ``settings.base_url``.
    places : tuple of str
        What it writes in the run folder, as patterns.
    """

    name: ClassVar[str]
    module: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    takes: ClassVar[tuple[str, ...]] = ()
    client: Any = None
    labels: ClassVar[frozenset[str]] = frozenset()
    paths: ClassVar[frozenset[str]] = frozenset()
    variables: ClassVar[Mapping[str, str]] = {}
    nested: ClassVar[frozenset[str]] = frozenset()
    places: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        open_client: Callable[[dict[str, Any]], Any] | None = None,
        gives: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.settings = dict(settings or {})
        self.open_client, self.gives = open_client, gives
        self.notices: list[str] = []

    def say(self, text: str) -> None:
        """Have a sentence shown to the user, by the training's own thread; the same one is shown once."""
        if text not in self.notices:
            self.notices.append(text)

    @classmethod
    def admits(cls, name: str, value: Any) -> bool:
        """Whether a run folder may say this setting: it names no address, no file and nothing to be done."""
        return name in cls.labels

    @classmethod
    def misled_by(cls, folder: Path) -> Path | None:
        """A file in the run folder from which the client would take its settings by itself."""
        return None

    def check(self) -> None:
        """Refuse settings that cannot work, at once and without any network: TypeError or ValueError."""

    def start(self, info: RunInfo) -> str:
        """Open a new run, or go on with the one of ``info.id``; return its id."""
        raise NotImplementedError

    def last_step(self) -> int | None:
        """The last step that is kept already, read back from where it is kept; None when that cannot be told."""
        return None

    def watch(self, name: str, mode: str) -> None:
        """Learn which value tells the best, when it is another one than `start` was told; before its first record."""

    def last_part(self) -> int | None:
        """The last part of the last step that is kept already; None when that cannot be told."""
        return None

    def fitting(self, record: Record) -> Record:
        """A record without what this logger has no place for, which is said once."""
        if not record.texts and not record.pictures:
            return record
        missing = [name for name, path in record.pictures.items() if not path.is_file()]
        if missing:
            self.say(f"a picture that the run has logged, {missing[0]!r}, is not in its folder, and is left out")
        pictures = {name: path for name, path in record.pictures.items() if name not in missing}
        for kind, there in (("texts", record.texts), ("pictures", pictures)):
            if there and kind not in self.takes:
                self.say(f"it keeps no {kind}; those that the run logs are in the run's folder")
        return replace(
            record,
            texts=record.texts if "texts" in self.takes else {},
            pictures=pictures if "pictures" in self.takes else {},
        )

    def log(self, record: Record) -> None:
        """Keep one record."""
        raise NotImplementedError

    def flush(self) -> None:
        """Let all that was logged be kept, even if the process is killed now, as far as the client can do that."""

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Note the run's summary (what `summary.json` holds) beside its curves."""

    def keep_file(self, path: Path) -> None:
        """Keep a file of the run (the best weights), if the user's settings ask for it."""

    def finish(self, status: str) -> None:
        """Close; `status` is ``'done'``, ``'failed'`` or ``'interrupted'``."""
        raise NotImplementedError


def flat(values: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as pairs, with names such as ``settings/the optimizer/lr``."""
    for key, value in values.items():
        name = f"{head}/{key}" if head else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        else:
            yield name, value
