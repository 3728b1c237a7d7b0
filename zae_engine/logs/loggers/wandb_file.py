"""The ``.wandb`` file of a W&B run: which steps are in it, also when the process that wrote it was killed.

The file is a LevelDB log: blocks of 32 KiB that hold records, each with a header of checksum (4 bytes), length (2) and
type (1: whole; 2, 3, 4: the first, a middle and the last part of one that spans blocks), little-endian. The first block
begins with 7 bytes of W&B's own. See https://github.com/google/leveldb/blob/main/doc/log_format.md. What a record says
is read with the messages of the installed wandb.
"""

from __future__ import annotations

import json
import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...files import read_bytes

_MOST = 1 << 31
_BLOCK = 32768
_MAGIC = b":W&B"
_HEADER = struct.Struct("<IHB")
_SETTLED = 5.0  # seconds that wandb-core is given to write the last of a file
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_steps(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield step and values of each history record that is whole; a file that is none of W&B's has none."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined, unused-ignore]

    for data in _records(read_bytes(path, _MOST)):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            yield record.history.step.num, {_key(item): _value(item) for item in record.history.item}


def is_ended(path: Path) -> bool:
    """Whether the run's end is in the file, among its last records."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined, unused-ignore]

    return any(Record.FromString(data).HasField("exit") for data in deque(_records(read_bytes(path, _MOST)), maxlen=3))


def _records(data: bytes) -> Iterator[bytes]:
    """Whole records, up to where the file was cut."""
    place, parts = len(_MAGIC) + 3, list[bytes]()
    while data.startswith(_MAGIC) and place + _HEADER.size <= len(data):
        if _BLOCK - place % _BLOCK < _HEADER.size:
            place += _BLOCK - place % _BLOCK  # the rest of a block that has no room for a header is filled up
            continue
        _, length, kind = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or place + length > len(data):
            return
        parts = parts if kind in (_MIDDLE, _LAST) else []
        parts.append(data[place : place + length])
        place += length
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)


def _key(item: Any) -> str:
    return str(item.key) or "/".join(item.nested_key)


def _value(item: Any) -> Any:
    """A value, which newer clients keep by its type and older ones as JSON."""
    kind = item.WhichOneof("value") if item.DESCRIPTOR.oneofs_by_name else None
    if kind == "none":
        return None
    return json.loads(item.value_json or "null") if kind in (None, "json") else getattr(item, kind)


def pieces_of(folder: Path, name: str, waiting: bool = False) -> list[Path]:
    """The files of an offline run, one an attempt, in order; if `waiting`, those that were not uploaded yet."""
    found = sorted(folder.glob(f"wandb/offline-run-*/run-{name}.wandb"))
    return [path for path in found if not (waiting and path.with_name(f"{path.name}.synced").exists())]


def settle(path: Path) -> None:
    """Wait until a file is complete: an offline run's `finish` does not, and whoever goes on with the run reads it."""
    until = time.monotonic() + _SETTLED
    while path.is_file() and not is_ended(path) and time.monotonic() < until:
        time.sleep(0.02)
