"""A list of devices: what it names, whether that can be, and the Accelerate configuration that it means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..suggestions import nearest
from .environment import LaunchError, World
from .machine import Machine

_KINDS = ("cpu", "cuda", "xpu", "npu", "mlu", "musa", "hpu", "mps")


@dataclass(frozen=True)
class Devices:
    """Devices of one kind.

    Attributes
    ----------
    kind : str
        ``'cpu'``, ``'cuda'`` and so on.
    indices : tuple of int
        Counted among the visible ones; all 0 on the CPU.
    """

    kind: str
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """How many processes they stand for."""
        return len(self.indices)

    @property
    def names(self) -> list[str]:
        """As they are written in ``device=``."""
        return ["cpu" if self.kind == "cpu" else f"{self.kind}:{index}" for index in self.indices]


def read_devices(entries: Sequence[Any], machine: Machine) -> Devices:
    """Read ``device=['cuda:0', 'cuda:1']``, ``[0, 1]`` or ``['cpu', 'cpu']``.

    Parameters
    ----------
    entries : sequence of str, int or torch.device
        An int is an accelerator's index.
    machine : Machine
        Its kind of accelerator is the one of a bare index.

    Raises
    ------
    ValueError
        When the list is empty, mixes kinds, or has an entry that is no device, or an accelerator twice.
    """
    if not entries:
        raise ValueError("device=[] names no device; name them, as ['cuda:0', 'cuda:1'], or write None")
    read = [_read(entry, machine) for entry in entries]
    kinds = dict.fromkeys(kind for kind, _ in read)
    if len(kinds) > 1:
        raise ValueError(
            f"device={_show(entries)} mixes {' and '.join(kinds)}; all processes of a training have one kind of device"
        )
    kind = read[0][0]
    if kind != "cpu":
        _refuse_repeated(entries, kind, [index for _, index in read])
    return Devices(kind, tuple(0 if index is None else index for _, index in read))


def _read(entry: Any, machine: Machine) -> tuple[str, int | None]:
    if isinstance(entry, int) and not isinstance(entry, bool):
        if not machine.visible:
            raise ValueError(f"device={entry} is an accelerator's index, but this machine has none; write 'cpu'")
        return machine.kind, entry
    found = re.fullmatch(r"([a-z]+)(?::(\d+))?", str(entry))
    kind = found.group(1) if found else ""
    if not found or kind not in _KINDS:
        near = nearest(str(entry).split(":")[0], _KINDS, 0.7)
        hint = f"; did you mean {near + str(entry)[len(str(entry).split(':')[0]) :]!r}?" if near else ""
        raise ValueError(f"device={entry!r} is not a device; write 'cuda:0', 0 or 'cpu'{hint}")
    return kind, None if found.group(2) is None else int(found.group(2))


def _refuse_repeated(entries: Sequence[Any], kind: str, indices: list[int | None]) -> None:
    if len(indices) < 2:
        return
    if kind == "mps":
        raise ValueError(f"device={_show(entries)} names 'mps' {len(indices)} times, but it is only one; write 'mps'")
    if None in indices:
        numbered = [f"{kind}:{i}" for i in range(len(indices))]
        raise ValueError(f"device={_show(entries)} does not say which ones; number them, as {numbered}")
    if twice := sorted({i for i in indices if i is not None and indices.count(i) > 1}):
        raise ValueError(
            f"device={_show(entries)} names '{kind}:{twice[0]}' {indices.count(twice[0])} times; two processes cannot"
            " share an accelerator, so name each once"
        )


def check_there(devices: Devices, machine: Machine) -> None:
    """Refuse accelerators that are not visible.

    Raises
    ------
    ValueError
        With what is visible, and what to write.
    """
    if devices.kind == "cpu":
        return
    there = len(machine.visible) if machine.kind == devices.kind else 0
    if outside := [index for index in devices.indices if not 0 <= index < there]:
        raise ValueError(
            f"device={devices.names} names '{devices.kind}:{outside[0]}', but here is {machine.describe()}; indices"
            " count from 0 among those that are visible (CUDA_VISIBLE_DEVICES): "
            + (f"write {devices.kind}:0 to {devices.kind}:{there - 1}" if there else "write ['cpu', 'cpu'] for the CPU")
        )


def check_count(devices: Devices, world: World) -> None:
    """Refuse a list that is not as long as a launcher started processes on this machine.

    Raises
    ------
    LaunchError
        With both numbers.
    """
    if len(devices) != world.local_size:
        raise LaunchError(
            f"device={devices.names} names {len(devices)}, but a launcher started {world.local_size} processes on this"
            f" machine; start {len(devices)}, or write device='{devices.kind}', which fits any number"
        )


def numbered(devices: Devices) -> Devices:
    """As the processes of a launcher see them, which shows them these only, and numbers them anew."""
    return Devices(devices.kind, tuple(range(len(devices))) if devices.kind != "cpu" else devices.indices)


def configuration(devices: Devices, machine: Machine, precision: str = "no") -> dict[str, Any]:
    """The Accelerate launch configuration of one process for each device.

    Parameters
    ----------
    devices : Devices
        Its indices count among the machine's visible ones, whose names become ``gpu_ids``.
    machine : Machine
        This machine.
    precision : str
        Becomes ``mixed_precision``.
    """
    several = len(devices) > 1
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        # On the CPU, too: MULTI_CPU would start one process, and be silent about it.
        "distributed_type": machine.several if several else "NO",
        "num_processes": len(devices),
        "num_machines": 1,
        "machine_rank": 0,
        "main_process_port": 0,  # a free one
        "mixed_precision": precision,
        "use_cpu": devices.kind == "cpu",
        "debug": False,
    }
    if devices.kind != "cpu":
        config["gpu_ids"] = ",".join(machine.visible[index] for index in devices.indices)
    return config


def variables(devices: Devices, machine: Machine) -> dict[str, str]:
    """What the processes need in their environment besides the configuration."""
    if devices.kind != "cpu":
        return {}
    return {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(max(1, machine.cores // len(devices)))}


def _show(entries: Sequence[Any]) -> str:
    return str([entry if isinstance(entry, int) else str(entry) for entry in entries])
