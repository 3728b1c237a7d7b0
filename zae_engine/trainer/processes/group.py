"""The processes of one training: how many, which one this is, and what they tell each other."""

from __future__ import annotations

import atexit
import functools
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from ..hangs.waits import Waits

V = TypeVar("V")
P = ParamSpec("P")


def _explained(exchange: Callable[Concatenate[Processes, P], V]) -> Callable[Concatenate[Processes, P], V]:
    """Let an exchange that fails say who has not come; within a run that is done for all that fails there."""

    @functools.wraps(exchange)
    def explained(self: Processes, /, *args: P.args, **kwargs: P.kwargs) -> V:
        try:
            return exchange(self, *args, **kwargs)
        except RuntimeError as error:
            if not self.waits.running and (text := self.waits.explain(error)):
                raise RuntimeError(text) from error
            raise

    return explained


class Processes:
    """Every process calls the same method at the same place, or all of them wait; on one process nothing is sent.

    Parameters
    ----------
    accelerator : Accelerator
        Which knows the process group.

    Attributes
    ----------
    count : int
        Processes of the training, over all machines.
    index : int
        This one's number, from 0.
    first : bool
        Whether this is process 0: the one that shows and writes.
    device : torch.device
        This one's.
    waits : Waits
        How long this process waits for others, and for the workers of its loaders.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count, self.index = int(accelerator.num_processes), int(accelerator.process_index)
        self.first = self.index == 0
        self._gloo = self.count > 1 and torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo"
        self.device: torch.device = accelerator.device
        self.waits = Waits(None, self.index, self.count, str)
        self._groups: dict[int, Any] = {}

    @_explained
    def gather(self, value: V) -> list[V]:
        """Every process's (picklable) value, in the processes' order."""
        return [value] if self.count == 1 else list(gather_object([value]))

    @_explained
    def from_first(self, value: V) -> V:
        """Process 0's (picklable) value."""
        return value if self.count == 1 else broadcast_object_list([value], from_process=0)[0]

    def on_first(self, function: Callable[[], V]) -> V:
        """Let process 0 do it, and give every process the (picklable) outcome, or the error that came of it."""
        if self.count == 1:
            return function()
        outcome: Any = None
        error: Exception | None = None
        if self.first:
            try:
                outcome = function()
            except Exception as raised:  # whatever it is, the others wait for it
                error = raised
        outcome, told = self.from_first((outcome, error and _portable(error)))
        if told is not None:
            raise error or told
        return outcome  # type: ignore[no-any-return]  # what process 0 has returned

    def numbers(self, values: Sequence[float | Tensor]) -> Tensor:
        """Some numbers as one tensor of shape (len(values),) on the device, in float64, so that counts stay exact."""
        device = self._accelerator.device
        wide = torch.float32 if device.type == "mps" else torch.float64  # which that device does not have
        return torch.stack([torch.as_tensor(v, device=device).detach().to(wide).reshape(()) for v in values])

    @_explained
    def sum(self, values: Sequence[float | Tensor]) -> Tensor:
        """The sums of some numbers over the processes, as one tensor of shape (len(values),) on the device."""
        own = self.numbers(values)
        return own if self.count == 1 else self._accelerator.reduce(own, "sum")

    @_explained
    def stack(self, blocks: Tensor) -> Tensor:
        """Every process's blocks, of shape (k, …), in the processes' order, of shape (count · k, …)."""
        if not self._gloo:
            return blocks if self.count == 1 else self._accelerator.gather(blocks)
        # As Accelerate does it there, without a second copy of what has come.
        everyone = blocks.new_empty(self.count * len(blocks), *blocks.shape[1:])
        torch.distributed.all_gather(list(everyone.chunk(self.count)), blocks.contiguous())
        return everyone

    @_explained
    def same_weights(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of process 0, in place."""
        if self.count > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                torch.distributed.broadcast(tensor.detach(), src=0)

    @_explained
    def same_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of process 0, in place: BatchNorm's statistics differ within an epoch."""
        if self.count > 1 and not is_sharded(model):
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer.detach(), src=0)

    def leading(self, count: int) -> Any:
        """The group of the first `count` processes; all of them have to ask for it."""
        if count not in self._groups:
            self._groups[count] = torch.distributed.new_group(range(count))
        return self._groups[count]

    @_explained
    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()


def _portable(error: Exception) -> Exception:
    """The error as another process can have it: itself, or its type and words when it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own pickling can fail in any way
        return RuntimeError(f"on process 0: {type(error).__name__}: {error}")
    return error


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of the parameters: FSDP2, by whoever it was applied, or ZeRO-3."""
    # What a DTensor has, and what DeepSpeed gives to the parameters that it spreads. After an evaluation FSDP2 may hold
    # whole parameters; its modules are then still known by what they can do.
    parameters = list(model.parameters())
    spread = any(hasattr(kind, "full_tensor") for kind in set(map(type, parameters)))
    return (
        spread
        or any("ds_id" in vars(p) for p in parameters)
        or any(hasattr(m, "set_requires_gradient_sync") for m in model.modules())
    )


def leave_group() -> None:
    """End the process group before the interpreter ends.

    A thread of gloo that still has to let go of a Python object then would find no interpreter, and abort a process
    whose work is done.
    """
    failed = hasattr(sys, "last_value")  # then others may be waiting for this process, and so would the ending
    if torch.distributed.is_available() and torch.distributed.is_initialized() and not failed:
        time.sleep(0.1)  # lets such threads run
        torch.distributed.destroy_process_group()


atexit.register(leave_group)
