"""How a batch gets to the device: in the order of the steps, or on a stream of its own, beside the step before."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..nested_values import is_nest, place, rebuild

SWITCH = "ZAE_COPY_STREAM"


def sender(device: torch.device) -> Callable[[Any], Any]:
    """Decide, once before the loop, how batches get to a device.

    A stream of its own has to be asked for, by the variable ``ZAE_COPY_STREAM=1``, and is there on CUDA only.
    """
    beside = _is_asked_for(os.environ)
    if device.type != "cuda":
        return partial(place, device=device)
    if not beside:
        return partial(place, device=device, non_blocking=True)
    index = torch.cuda.current_device() if device.index is None else device.index
    return partial(send_beside, device=torch.device("cuda", index))


def _is_asked_for(env: Mapping[str, str]) -> bool:
    value = env.get(SWITCH, "0")
    if value not in ("0", "1", ""):
        raise ValueError(f"{SWITCH}={value!r} is neither '1' nor '0'; write {SWITCH}=1 to copy on a stream of its own")
    return value == "1"


def send_beside(batch: Any, device: torch.device) -> Any:
    """Return `batch` on the device; its plain tensors are copied while the device still computes what was asked before.

    The host is ahead of a GPU: it asks for a batch while the step before is being computed. In the order of the steps,
    the copy would begin after that step. On another stream it begins at once, and only the step that needs it waits for
    it. The host does the same things in the same order as without, so nothing else can change.
    """
    backend = torch.get_device_module(device)
    steps, beside = backend.current_stream(device), _stream(device)
    sent = list[Tensor]()
    with backend.stream(beside):
        batch = copy_plain(batch, device, sent)
    steps.wait_stream(beside)
    for copy in sent:
        copy.record_stream(steps)  # else its memory could be given to the next copy while a step still reads it
    return place(batch, device, non_blocking=True)  # the rest, in the order of the steps


def copy_plain(nest: Any, device: torch.device, sent: list[Tensor]) -> Any:
    """Copy what lies in the host's memory, and add it to `sent`; anything else may be a step's work, and is left."""
    if type(nest) is Tensor:
        if not nest.is_cpu or nest.layout is not torch.strided or nest.is_nested or nest.requires_grad:
            return nest
        copy = nest.to(device, non_blocking=True)
        if copy is not nest:
            sent.append(copy)
        return copy
    if callable(getattr(nest, "to", None)) or not is_nest(nest):
        return nest
    return rebuild(nest, lambda child: copy_plain(child, device, sent))


@cache
def _stream(device: torch.device) -> Any:
    """The device's stream for copies; one for all trainers, since memory is kept for each stream apart."""
    return torch.get_device_module(device).Stream(device)
