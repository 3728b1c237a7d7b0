"""Event files for TensorBoard, written by its own package: neither torch nor TensorFlow is needed for that."""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..trust import is_inside, is_name, is_named, refuse_elsewhere
from .logger import Logger, Record, RunInfo, flat
from .registry import check_settings

_SETTINGS = ("filename_suffix", "flush_secs", "log_dir", "max_queue_size")
_STATUS = {"done": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}


class TensorBoardLogger(Logger):
    """One event a record, in ``tensorboard/`` of the run folder; the configuration as text and hyperparameters.

    TensorBoard keeps numbers of single precision. A resumed run adds a file to its folder. A new run whose folder
    has another run's files takes the next free one, ``tensorboard-2`` say.

    Parameters
    ----------
    log_dir : path-like, optional
        Setting: the folder of the event files; of another file system, ``s3://…`` say, where TensorBoard can write it.
    flush_secs : float, optional
        Setting: seconds between two writes at most; 120 by default. They are also written by each `flush`.
    max_queue_size : int, optional
        Setting: events that wait to be written; 10 by default.
    filename_suffix : str, optional
        Setting: put to the name of each file.

    Attributes
    ----------
    client : EventFileWriter
        Of ``tensorboard.summary.writer.event_file_writer``.
    """

    name: ClassVar[str] = "tensorboard"
    module: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"
    takes: ClassVar[tuple[str, ...]] = ("texts", "pictures")
    labels = frozenset({"flush_secs", "max_queue_size"})
    paths = frozenset({"log_dir"})
    places = ("tensorboard*",)

    @classmethod
    def admits(cls, name: str, value: Any) -> bool:
        """The suffix is a part of the files' names."""
        return super().admits(name, value) or (name == "filename_suffix" and is_name(value))

    def check(self) -> None:
        """Refuse settings that there are not, and values that cannot be."""
        check_settings(type(self), self.settings, _SETTINGS)
        folder = self.settings.get("log_dir", "tensorboard")
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            raise TypeError(f"log_dir={folder!r} of the tensorboard logger is no path; write log_dir='tensorboard'")
        for name, kind in (("flush_secs", (int, float)), ("max_queue_size", int)):
            value = self.settings.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, kind) or value <= 0:
                raise ValueError(f"{name}={value!r} of the tensorboard logger is no positive number; write {name}=10")

    def start(self, info: RunInfo) -> str:
        """Open a further file of the run's folder; its id is the folder, relative to the run's where it is inside."""
        folder = self._folder(info)
        self._last, self._part = _last_place(folder) if info.id is not None else (0, None)
        _wait_for_next_second(folder)
        self._offered = self._last or 0
        further = {name: value for name, value in self.settings.items() if name != "log_dir"}
        self.client = (self.open_client or _open)({"log_dir": folder, **further})
        self._describe(info)
        return os.path.relpath(folder, info.folder) if Path(folder).is_relative_to(info.folder) else folder

    def last_step(self) -> int | None:
        """The last step in the folder's files; None in another file system."""
        return self._last

    def last_part(self) -> int | None:
        """The last part of that step."""
        return self._part

    def log(self, record: Record) -> None:
        """Hand one record to the writer; one that is there already is passed over."""
        if record.step <= self._offered and not record.part:
            return
        event = _event(record.time, record.step)
        for name, value in record.values.items():
            event.summary.value.add(tag=name, simple_value=value)
        for name, path in record.pictures.items():
            event.summary.value.add(tag=name, image=_image(path.read_bytes()))
        for name, text in record.texts.items():
            event.summary.value.append(_text(name, text))
        self.client.add_event(event)
        self._offered = record.step

    def flush(self) -> None:
        """Have everything written."""
        self.client.flush()

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Keep the summary as text."""
        self._text("summary", summary, self._offered)

    def finish(self, status: str) -> None:
        """Note how the run ended, beside its hyperparameters, and close the file."""
        self._add(_end(_STATUS.get(status, "STATUS_UNKNOWN")), self._offered)
        self.client.close()

    def _folder(self, info: RunInfo) -> str:
        """The run's own folder; one of another file system stays as it is written."""
        own = str(self.settings.get("log_dir", info.folder / "tensorboard"))
        if info.id is not None and not self._is_known(info, own):
            refuse_elsewhere(type(self), info.id, info.folder / info.id, "log_dir")
        if "://" in (folder := str(info.id or own)):
            return folder
        path = info.folder / (info.id or os.path.abspath(folder))
        number, free = 1, path
        while info.id is None and _last_place(str(free))[0]:  # what has no number yet was killed as it began
            number += 1
            free = path.with_name(f"{path.name}-{number}")
        return str(free)

    def _is_known(self, info: RunInfo, own: str) -> bool:
        """Whether the folder of before is in the run's, or the one of the settings, maybe with a number."""
        before = str(info.id)
        if "://" in before or "://" in own:
            return before == own
        path, given = info.folder / before, self.settings.get("log_dir")
        unnumbered = re.sub(r"-\d+$", "", str(path))
        return is_inside(path, info.folder) or is_named(given, path) or is_named(given, unnumbered)

    def _describe(self, info: RunInfo) -> None:
        """The configuration as text and, as far as they are plain values, as hyperparameters to compare runs by."""
        from tensorboard.plugins.hparams import summary_v2

        self._text("config", info.config, info.step)
        plain = {name: value for name, value in flat(info.config) if isinstance(value, (bool, int, float, str))}
        self._add(summary_v2.hparams_pb(plain, trial_id=info.name), info.step)
        self.flush()

    def _text(self, tag: str, values: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
        shown = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown shows it as it is
        self._add(Summary(value=[_text(tag, shown)]), step)

    def _add(self, summary: Any, step: int) -> None:
        event = _event(time.time(), step)
        event.summary.CopyFrom(summary)
        self.client.add_event(event)


def _event(wall_time: float, step: int) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=wall_time, step=step)


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    kept = make_tensor_proto(text.encode())
    described = metadata.create_summary_metadata(display_name="", description="")
    return Summary.Value(tag=tag, tensor=kept, metadata=described)


def _image(content: bytes) -> Any:
    """A picture as it is; of a PNG with its size, which TensorBoard shows."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", content[16:24]) if content[1:4] == b"PNG" and len(content) >= 24 else (0, 0)
    return Summary.Image(encoded_image_string=content, width=width, height=height, colorspace=3)


def _end(status: str) -> Any:
    """What ``session_end_pb`` of TensorBoard makes, which needs TensorFlow for it."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    ended = SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=time.time())
    described = metadata.create_summary_metadata(HParamsPluginData(session_end_info=ended))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=described, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _open(settings: dict[str, Any]) -> Any:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    return EventFileWriter(settings.pop("log_dir"), **settings)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("events.out.tfevents.*") if path.is_file() and not path.is_symlink())


def _wait_for_next_second(folder: str) -> None:
    """TensorBoard reads a folder's files by name, which has the second they were made in: the later after the earlier.

    Of files that a clock ahead of this one has made, nothing is waited for.
    """
    stamps = [int(part) for path in _files(Path(folder)) if (part := path.name.split(".")[3]).isdigit()]
    while stamps and 0 <= max(stamps) - int(time.time()) <= 2:
        time.sleep(0.05)


def _last_place(folder: str) -> tuple[int | None, int | None]:
    """Steps only grow from file to file, so the newest that has one tells it; a cut event at its end is passed over."""
    if "://" in folder:
        return None, None
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in sorted(_files(Path(folder)), key=lambda path: path.stat().st_mtime, reverse=True):
        events = LegacyEventFileLoader(str(path)).Load()
        steps: list[int] = [event.step for event in events if any(map(_is_number, event.summary.value))]
        if steps:
            return max(steps), steps.count(max(steps)) - 1
    return 0, 0


def _is_number(value: Any) -> bool:
    return bool(value.WhichOneof("value") == "simple_value")
