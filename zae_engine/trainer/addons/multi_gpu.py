"""Train on several devices from a script that is started by plain ``python``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...launch import devices as lists
from ...launch.environment import by_accelerate, enter
from ...launch.resolve import write_config
from ...launch.start import restart
from ..compose import AddOnBase


class MultiGPUAddon(AddOnBase):
    """Takes a list of devices and trains on each of them, one process a device.

    Making the trainer starts the script once more in every process, by Accelerate's launcher, and puts that in this
    process's place: what stands before the trainer runs again, what stands behind it only there. Under a launcher
    (``accelerate launch``, torchrun, srun) nothing is started; the list has to be as long as there are processes.

    Parameters
    ----------
    device : str, torch.device, or a list of these or of indices
        ``['cuda:0', 'cuda:1']``, ``[0, 1]``, ``['cpu', 'cpu']``. One device starts nothing.

    Raises
    ------
    ValueError
        When the list is empty, mixes kinds, or names a device twice or one that is not there.
    LaunchError
        When a launcher started another number of processes, or this script cannot be started again.

    Examples
    --------
    >>> Multi = MyTrainer.add_on(MultiGPUAddon)
    >>> trainer = Multi(model, device=["cuda:0", "cuda:1"], optimizer=optimizer)
    """

    def __init__(self, model: Any, device: Any = None, *args: Any, **kwargs: Any) -> None:
        self._devices: lists.Devices | None = None
        if isinstance(device, (list, tuple)):
            self._devices = _local(lists.read_devices(device, lists.look()), kwargs.get("mixed_precision") or "no")
            device = self._devices.names[0] if len(self._devices) == 1 else self._devices.kind
        super().__init__(model, device, *args, **kwargs)

    def launch_config(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return the Accelerate configuration that this trainer's devices mean.

        Parameters
        ----------
        path : path-like, optional
            Where to write it as YAML, for ``accelerate launch --config_file``.
        """
        device = self.accelerator.device
        devices = self._devices or lists.Devices(device.type, (device.index or 0,))
        config = lists.configuration(devices, lists.look(), self.accelerator.mixed_precision)
        if path is not None and self.accelerator.is_main_process:
            write_config(config, Path(path))
        return config


def _local(devices: lists.Devices, precision: str) -> lists.Devices:
    """The devices of the processes here, as these see them; there is no return where they have to be started first."""
    machine = lists.look()
    world = enter(os.environ, 0 if devices.kind == "cpu" else len(machine.visible))
    if world.launched or by_accelerate(os.environ):
        lists.check_count(devices, world)
        return lists.numbered(devices) if world.launched else devices
    lists.check_there(devices, machine)
    if len(devices) > 1:
        more = {name: value for name, value in lists.variables(devices, machine).items() if name not in os.environ}
        restart(lists.configuration(devices, machine, precision), more)
    return devices
