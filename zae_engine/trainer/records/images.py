"""Pictures of the user's, as the bytes of a file: arrays, PIL's images, figures, files."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...logs.history_file import SUFFIXES

_CHANNELS = {1: 0, 3: 2, 4: 6}  # PNG's colour types: grey, RGB, RGBA


def is_picture(value: Any) -> bool:
    """Whether a value is one that `encoded` makes a picture of; of a text, whether it names a picture's file."""
    if isinstance(value, str):
        return value.lower().endswith(SUFFIXES) and os.path.isfile(value)
    return isinstance(value, (os.PathLike, Tensor, np.ndarray)) or _saves(value) is not None


def encoded(value: Any) -> tuple[str, bytes]:
    """A picture as it is now: the ending of its file's name, and its bytes.

    Parameters
    ----------
    value : tensor, array, figure, image or path
        Arrays are (height, width), with 1, 3 or 4 channels behind or before these. Integers from 0 to 255 and
        floating-point numbers from 0 to 1 are taken as they are, others are stretched from the least to the greatest.

    Raises
    ------
    ValueError
        For what is no picture.
    OSError
        For a file that cannot be read.
    """
    if isinstance(value, (str, os.PathLike)):
        return _of_file(Path(value))
    if isinstance(value, (Tensor, np.ndarray)):
        return ".png", png(_pixels(value))
    buffer, saves = io.BytesIO(), _saves(value)
    assert saves is not None  # is_picture has said so
    saves(buffer)
    return ".png", buffer.getvalue()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of (height, width, channels), by the standard library alone."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, _CHANNELS[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    content = part[0] + part[1]
    return struct.pack(">I", len(part[1])) + content + struct.pack(">I", zlib.crc32(content))


def _of_file(path: Path) -> tuple[str, bytes]:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{str(path)!r} is no picture's file; those end with {', '.join(SUFFIXES)}")
    return path.suffix.lower(), path.read_bytes()


def _saves(value: Any) -> Any:
    """What writes a figure, or an image of PIL's, into a buffer; None for anything else."""
    if callable(getattr(value, "savefig", None)):
        return lambda buffer: value.savefig(buffer, format="png")
    if callable(getattr(value, "get_figure", None)):  # the axes, or the artist that a plotting function returns
        return _saves(value.get_figure())
    image = getattr(value, "image", value)  # a client's own wrapper has PIL's inside
    if type(image).__module__.partition(".")[0] == "PIL" and hasattr(image, "convert"):
        plain = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
        return lambda buffer: plain.save(buffer, format="PNG")
    return None


def _pixels(value: Any) -> NDArray[np.uint8]:
    array = value.detach().cpu().float().numpy() if _is_half(value) else np.asarray(_host(value))
    if array.ndim == 2:
        array = array[:, :, None]
    first = isinstance(value, Tensor) or array.shape[-1:] not in ((1,), (3,), (4,))  # torch has the channels first
    if array.ndim == 3 and array.shape[0] in _CHANNELS and first and value.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or not array.size or array.dtype.kind not in "biuf":
        raise ValueError(
            f"of shape {tuple(value.shape)}, it is neither one number nor a picture: those are (height, width), with 1,"
            " 3 or 4 channels behind or before these"
        )
    return np.ascontiguousarray(_bytes(array))


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _bytes(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    numbers = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = 1.0 if array.dtype.kind == "f" else 255.0
    least, greatest = numbers.min(), numbers.max()
    if least < 0 or greatest > top:
        numbers = (numbers - least) / ((greatest - least) or 1.0) * top
    return np.rint(numbers * (255.0 / top)).astype(np.uint8)
