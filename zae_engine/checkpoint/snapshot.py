"""Copies of tensors on the CPU, made quickly, so that training goes on while they are written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
        copies: dict[str, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():  # or the buffers could not be written outside of it
            copied: dict[object, Tensor] = {}
            for name, tensor in tensors.items():
                identity = identity_of(tensor)
                if identity not in copied:
                    copied[identity] = self._copy(name, tensor)
                copies[name] = copied[identity]
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = {name: copy for name, copy in copies.items() if copy is self._buffers.get(name)}
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return tensor.detach().clone()  # no file can hold it; writing says so, with its name
        buffer = self._buffers.get(name)
        if buffer is None or not _fits(buffer, tensor):
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


def _fits(buffer: Tensor, tensor: Tensor) -> bool:
    same = buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
    return same and (not tensor.is_cuda or buffer.is_pinned())


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
