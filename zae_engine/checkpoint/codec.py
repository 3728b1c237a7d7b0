"""A nest of plain values and tensors as a tree that JSON can hold and tensors by name, and back, exactly."""

from __future__ import annotations

import array
import base64
import datetime
import json
import math
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError

TAG, VALUE = "$", "v"  # of a value that JSON has no form for: {"$": kind, "v": content}
RESERVED = "__metadata__"  # a name that safetensors keeps for itself
_MANY = 1000  # numbers of an array.array that are kept as a tensor: a million of them as text take a second

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_FACTORIES: dict[str, Any] = {t.__name__: t for t in (int, float, str, bool, list, dict, set, tuple)} | {"None": None}
_PATHS: dict[str, type[pathlib.PurePath]] = {
    "path": pathlib.Path,
    "posix_path": pathlib.PurePosixPath,
    "windows_path": pathlib.PureWindowsPath,
}


def pack(tree: Any, where: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split a nest of values into what JSON can hold and its tensors.

    Parameters
    ----------
    tree : any
        None, bool, int, float, complex, str, bytes, bytearray; list, tuple, set, frozenset, dict, OrderedDict, Counter,
        defaultdict; Tensor, torch.dtype, torch.Size, torch.device; NumPy arrays and scalars of numbers and bools;
        array.array, datetime, date, time, timedelta and paths.
    where : str
        The path that names of tensors begin with.

    Returns
    -------
    tree : any
        For ``json.dumps(..., allow_nan=False)``.
    tensors : dict of str to Tensor
        Named by their path, ``"optimizer/state/0/exp_avg"``. They are not copied; a NumPy array's is a view of it.

    Raises
    ------
    CheckpointError
        Naming the path and the type of a value of another kind.

    Notes
    -----
    A value that stands in two places is two values after loading, and so are tensors that share memory. A Parameter
    comes back as a Tensor, a defaultdict with a factory of its own as a dict, a time zone with a name as its offset.
    """
    packer = _Packer()
    try:
        return packer.pack(tree, where), packer.tensors
    except RecursionError:
        raise CheckpointError(f"{where or 'the state'} contains itself, or is nested too deeply to be saved") from None


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together again what `pack` has split.

    Nothing that the tree names is imported or run: it may choose from the kinds that are known here, no more.

    Raises
    ------
    CheckpointError
        For a kind that is not known, content that does not fit its kind, or a tensor that is not there.
    """
    try:
        return _unpack(tree, tensors)
    except CheckpointError:
        raise
    except Exception as error:  # content that was tampered with raises anything
        raise CheckpointError(f"the saved state is malformed: {type(error).__name__}: {error}") from error


class _Packer:
    """Walks a nest and collects its tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def pack(self, value: Any, where: str) -> Any:
        kind = type(value)
        if (leaf := _LEAVES.get(kind)) is not None:
            return leaf(value)
        if isinstance(value, Tensor):
            return {TAG: "tensor", VALUE: self._name(value, where)}
        if isinstance(value, np.generic) and value.dtype.kind in "biufcmM" and value.dtype.itemsize <= 16:
            return _tag("scalar", [value.dtype.str, value.tobytes().hex()])
        if kind is array.array:
            return self._numbers(value, where)
        if kind is np.ndarray and value.dtype.kind in "biufc":
            return self._array(value, where)
        if isinstance(value, pathlib.PurePath):
            return _tag(next(k for k, t in _PATHS.items() if isinstance(value, t)), _text(str(value)))
        if kind in _SEQUENCES:
            return self._sequence(kind, value, where)
        if kind in _MAPPINGS:
            return self._mapping(kind, value, where)
        raise _refusal(value, where)

    def _name(self, tensor: Tensor, where: str) -> str:
        """Keep the tensor under a name that no other has."""
        plain = (where if where.isascii() else where.encode("utf-8", "backslashreplace").decode()) or "value"
        name, count = plain, 1
        while name in self.tensors or name == RESERVED:
            count += 1
            name = f"{plain}~{count}"
        self.tensors[name] = tensor
        return name

    def _numbers(self, value: array.array[Any], where: str) -> Any:
        if len(value) >= _MANY and value.typecode in "bhiqfd":
            return _tag("numbers", [value.typecode, self._name(torch.from_numpy(np.array(value)), where)])
        return _tag("numbers", [value.typecode, [_float(i) if isinstance(i, float) else i for i in value]])

    def _array(self, value: np.ndarray[Any, Any], where: str) -> Any:
        native = np.asarray(value, dtype=value.dtype.newbyteorder("="))
        if not native.flags.writeable or any(s < 0 or s % native.itemsize for s in native.strides):
            native = native.copy()  # which torch cannot view
        try:
            return _tag("array", [value.dtype.str, self._name(torch.from_numpy(native), where)])
        except TypeError:
            raise _refusal(value, where, f" of {value.dtype}") from None

    def _sequence(self, kind: type, value: Iterable[Any], where: str) -> Any:
        head = f"{where}/" if where else ""
        items = [self.pack(item, f"{head}{index}") for index, item in enumerate(value)]
        if kind in (set, frozenset):
            items.sort(key=json.dumps)  # which is the same in every process
        return items if kind is list else _tag(_SEQUENCES[kind], items)

    def _mapping(self, kind: type, value: Mapping[Any, Any], where: str) -> Any:
        head = f"{where}/" if where else ""
        if kind is dict and TAG not in value and _has_plain_keys(value):
            return {key: self.pack(item, f"{head}{key}") for key, item in value.items()}
        items = [
            [self.pack(key, f"{head}{i} (key)"), self.pack(item, f"{head}{_step(key, i)}")]
            for i, (key, item) in enumerate(value.items())
        ]
        if isinstance(value, defaultdict) and value.default_factory in _FACTORIES.values():
            factory = next(name for name, made in _FACTORIES.items() if made is value.default_factory)
            return _tag("defaultdict", [factory, items])
        return _tag(_MAPPINGS[kind], items)


def _tag(kind: str, content: Any) -> dict[str, Any]:
    return {TAG: kind, VALUE: content}


def _has_plain_keys(value: Mapping[Any, Any]) -> bool:
    # Two questions in C come first: of the states of thousands of parameters each is asked.
    return set(map(type, value)) <= {str} and ("".join(value).isascii() or all(map(_is_text, value)))


def _step(key: Any, index: int) -> Any:
    """A key's part of a path: itself, if it is short."""
    return key if isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**64) else index


def _refusal(value: Any, where: str, more: str = "") -> CheckpointError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return CheckpointError(
        f"{where or 'the state'} is a {kind}{more}, which a checkpoint cannot hold;"
        " keep plain values, tensors and arrays in state_dict()"
    )


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _text(value: str) -> Any:
    """A string, of which UTF-8 cannot hold lone surrogates (odd file names have them)."""
    return value if _is_text(value) else _tag("str", value.encode("utf-8", "surrogatepass").hex())


def _int(value: int) -> Any:
    return value if abs(value) < 2**64 else _tag("int", hex(value))  # Python reads no decimals of any length


def _float(value: float) -> Any:
    if math.isfinite(value):
        return value
    return _tag("float", str(value) if math.isinf(value) else struct.pack(">d", value).hex())  # a nan has many bits


def _same(value: Any) -> Any:
    return value


def _base64(value: Any) -> str:
    return base64.b64encode(value).decode()


_LEAVES: dict[type, Callable[[Any], Any]] = {
    type(None): _same,
    bool: _same,
    int: _int,
    float: _float,
    str: _text,
    bytes: lambda x: _tag("bytes", _base64(x)),
    bytearray: lambda x: _tag("bytearray", _base64(x)),
    complex: lambda x: _tag("complex", [_float(x.real), _float(x.imag)]),
    torch.dtype: lambda x: _tag("dtype", str(x).removeprefix("torch.")),
    torch.Size: lambda x: _tag("size", list(x)),
    torch.device: lambda x: _tag("device", str(x)),
    datetime.datetime: lambda x: _tag("datetime", x.isoformat()),
    datetime.date: lambda x: _tag("date", x.isoformat()),
    datetime.time: lambda x: _tag("time", x.isoformat()),
    datetime.timedelta: lambda x: _tag("timedelta", [x.days, x.seconds, x.microseconds]),
}
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAPPINGS: dict[type, str] = {dict: "dict", defaultdict: "dict", OrderedDict: "ordered", Counter: "counter"}


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        raise CheckpointError(f"the saved state is malformed: a {type(tree).__name__} is in it")
    if TAG not in tree:
        return {key: _unpack(item, tensors) for key, item in tree.items()}
    kind = tree[TAG]
    if tree.keys() != {TAG, VALUE} or not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(f"the saved state holds a value of the unknown kind {kind!r}; is it of a later version?")
    return _KINDS[kind](tree[VALUE], tensors)


def _expect(value: Any, kind: type[Any], length: int | None = None) -> Any:
    """The value, if it is of this type."""
    if type(value) is not kind or (length is not None and len(value) != length):
        raise CheckpointError(f"the saved state is malformed: {str(value)[:40]!r} is no {kind.__name__}")
    return value


def _leaf(decode: Callable[[str], Any]) -> Callable[[Any, Mapping[str, Tensor]], Any]:
    """A kind whose content is text."""
    return lambda value, _: decode(_expect(value, str))


def _items(make: Callable[[Any], Any]) -> Callable[[Any, Mapping[str, Tensor]], Any]:
    """A kind whose content is packed items."""
    return lambda value, tensors: make(_unpack(_expect(value, list), tensors))


def _pairs(value: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    pairs = _unpack(_expect(value, list), tensors)
    return dict(_expect(pair, list, 2) for pair in pairs)


def _tensor(value: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    name = _expect(value, str)
    if name not in tensors:
        raise CheckpointError(f"the saved state has no tensor {name!r}, which its JSON names")
    return tensors[name]


def _dtype_of(name: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(_expect(name, str))
    if dtype.kind not in "biufcmM":
        raise CheckpointError(f"the saved state is malformed: {name!r} is no dtype of numbers")
    return dtype


def _ndarray(value: Any, tensors: Mapping[str, Tensor]) -> np.ndarray[Any, Any]:
    dtype, name = _expect(value, list, 2)
    return _tensor(name, tensors).numpy().astype(_dtype_of(dtype), copy=False)


def _scalar(value: Any, _: Mapping[str, Tensor]) -> Any:
    dtype, content = _expect(value, list, 2)
    return np.frombuffer(bytes.fromhex(_expect(content, str)), dtype=_dtype_of(dtype), count=1)[0]


def _numbers(value: Any, tensors: Mapping[str, Tensor]) -> array.array[Any]:
    code, items = _expect(value, list, 2)
    if not isinstance(items, str):
        return array.array(_expect(code, str), _unpack(_expect(items, list), tensors))
    numbers = _tensor(items, tensors).numpy()
    if numbers.dtype != np.dtype(_expect(code, str)):
        raise CheckpointError(f"the saved state is malformed: an array of {code!r} is of {numbers.dtype}")
    return array.array(code, numbers.tobytes())


def _default(value: Any, tensors: Mapping[str, Tensor]) -> defaultdict[Any, Any]:
    factory, items = _expect(value, list, 2)
    return defaultdict(_FACTORIES[factory], _pairs(items, tensors))


def _path(made: type[pathlib.PurePath]) -> Callable[[Any, Mapping[str, Tensor]], Any]:
    """A kind whose content is text, plain or not."""
    return lambda value, tensors: made(_unpack(value, tensors))


def _unfloat(text: str) -> float:
    return float(text) if text in ("inf", "-inf") else float(struct.unpack(">d", bytes.fromhex(text))[0])


def _complex(parts: list[Any]) -> complex:
    real, imag = (float(part) for part in parts)
    return complex(real, imag)


_KINDS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "tensor": _tensor,
    "array": _ndarray,
    "scalar": _scalar,
    "numbers": _numbers,
    "defaultdict": _default,
    "dict": _pairs,
    "ordered": lambda value, tensors: OrderedDict(_pairs(value, tensors)),
    "counter": lambda value, tensors: Counter(_pairs(value, tensors)),
    "tuple": _items(tuple),
    "set": _items(set),
    "frozenset": _items(frozenset),
    "complex": _items(_complex),
    "size": _items(torch.Size),
    "int": _leaf(lambda text: int(text, 16)),
    "float": _leaf(_unfloat),
    "str": _leaf(lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass")),
    "bytes": _leaf(lambda text: base64.b64decode(text, validate=True)),
    "bytearray": _leaf(lambda text: bytearray(base64.b64decode(text, validate=True))),
    "dtype": _leaf(_DTYPES.__getitem__),
    "device": _leaf(lambda text: torch.device(text)),
    "datetime": _leaf(datetime.datetime.fromisoformat),
    "date": _leaf(datetime.date.fromisoformat),
    "time": _leaf(datetime.time.fromisoformat),
    "timedelta": _items(lambda parts: datetime.timedelta(*parts)),
    **{kind: _path(made) for kind, made in _PATHS.items()},
}
