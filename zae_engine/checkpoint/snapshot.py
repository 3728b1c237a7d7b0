"""Copies of tensors on the CPU, made quickly, so that training goes on while they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_Pairs = tuple[list[Tensor], list[Tensor]]
_Marks = tuple[list[str], list[torch.dtype], list[torch.Size]]
_OWN = frozenset((Tensor, nn.Parameter))  # torch's own types, whose methods nobody has overridden


class Snapshot:
    """Copies tensors into buffers on the CPU, which are kept from one time to the next.

    Fresh memory costs more than the copy itself: the system hands it out page by page. So a buffer is used again as
    long as its tensor keeps name, shape, dtype and kind of device; it is let go when its tensor is gone.

    Notes
    -----
    What `take` returned is overwritten by the next `take`; write it before. Not for two threads at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._marks: _Marks | None = None  # of the last time, if that was simple
        self._targets: list[Tensor] = []  # of the last time

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the tensors as they are now.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            On any device, of any strides. From a CUDA device they come through pinned memory, all in one go, and the
            devices are waited for once, at the end.

        Returns
        -------
        dict of str to Tensor
            On the CPU, contiguous, without gradients. Tensors that are the same memory in the same shape (tied weights)
            are copied once, and are one object here.
        """
        marks = _marks(tensors)
        if marks is not None and marks == self._marks:
            with torch.inference_mode(False), torch.no_grad():
                torch._foreach_copy_(self._targets, list(tensors.values()))
            return dict(zip(tensors, self._targets, strict=True))
        copies = self._take(tensors)
        self._marks, self._targets = marks, list(copies.values()) if marks is not None else []
        return copies

    def _take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies, copied = dict[str, Tensor](), dict[object, Tensor]()
        near: _Pairs = ([], [])  # copies and tensors on the CPU
        far: _Pairs = ([], [])  # and others
        with torch.inference_mode(False), torch.no_grad():  # or the buffers could not be written outside of it
            for (name, tensor), key in zip(tensors.items(), _keys(tensors), strict=True):
                copy = copied.get(key)
                if copy is None:
                    copy = copied[key] = self._place(name, tensor, near, far)
                copies[name] = copy
            if near[0]:
                torch._foreach_copy_(*near)  # one call: of thousands of small tensors, the calls are what takes long
            for copy, tensor in zip(*far, strict=True):
                copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        for device in {tensor.device for tensor in far[1] if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = {name: copy for name, copy in copies.items() if copy is self._buffers.get(name)}
        return copies

    def _place(self, name: str, tensor: Tensor, near: _Pairs, far: _Pairs) -> Tensor:
        """Where a tensor's copy is to be, which is noted."""
        buffer = self._buffers.get(name)
        if buffer is None or not _fits(buffer, tensor):
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
                return tensor.detach().clone()  # no file can hold it; writing says so, with its name
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        pairs = near if type(tensor) in _OWN and tensor.is_cpu else far
        pairs[0].append(buffer)
        pairs[1].append(tensor)
        return buffer


def _fits(buffer: Tensor, tensor: Tensor) -> bool:
    if buffer.dtype is not tensor.dtype or buffer.shape != tensor.shape or tensor.layout is not torch.strided:
        return False
    return tensor.is_cpu or (not tensor.is_meta and (not tensor.is_cuda or buffer.is_pinned()))


def _marks(tensors: Mapping[str, Tensor]) -> _Marks | None:
    """What tells whether the buffers fit as they are; None unless each tensor is a plain one of memory of its own.

    Lists, since of thousands of small tensors it is the calls and objects in Python that take long.
    """
    values = list(tensors.values())
    if not _OWN.issuperset(map(type, values)):
        return None
    if not values or not all([t.is_cpu and t.layout is torch.strided for t in values]):  # noqa: C419 (see above)
        return None
    addresses = {t.data_ptr() for t in values}
    if len(addresses) < len(values) or 0 in addresses:
        return None
    return list(tensors), [t.dtype for t in values], [t.shape for t in values]


def _keys(tensors: Mapping[str, Tensor]) -> list[object]:
    """For each tensor what only those have too that are the same memory; the name, where none has that address."""
    addresses = [_address(tensor) for tensor in tensors.values()]
    count = Counter(addresses)
    return [
        name if address and count[address] == 1 else identity_of(tensor)
        for (name, tensor), address in zip(tensors.items(), addresses, strict=True)
    ]


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if type(tensor) in _OWN and tensor.layout is torch.strided else 0


def identity_of(tensor: Tensor) -> object:
    """The same for tensors that are the same memory, seen in the same way."""
    if hasattr(tensor, "device_mesh") or tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return id(tensor)
    view = (tensor.is_conj(), tensor.is_neg(), tensor.dtype, tensor.shape, tensor.stride())
    return (tensor.device, tensor.data_ptr(), *view)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all tensors, of the CPU, are there in both and equal to the bit."""
    return one.keys() == other.keys() and all(_same_bits(one[name], other[name]) for name in one)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout or one.is_quantized:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
