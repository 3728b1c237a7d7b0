"""Train on several devices from a script that is started by plain ``python``, or from a session."""

from __future__ import annotations

import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import patch_environment

from ...launch import devices as lists
from ...launch.environment import by_accelerate, enter
from ...launch.forked_workers import check_fork, run_workers
from ...launch.machine import look
from ...launch.resolve import write_config
from ...launch.start import interactive, restart
from ..compose import AddOnBase
from ..data.plan import named
from ..data.random_streams import generators_of
from ..interface import Face
from ..processes.device import resolve_precision
from ..records.epoch_log import EpochLog
from ..records.recorder import Recorder
from ..step.placement import Placement
from ..step.trained_parameters import Trained, put_trained
from .mix_precision import PrecisionMixerAddon, choose

# Of what a run leaves in the trainer, that which nothing else brings back to a session; the last is of add-ons.
_LEFT = ("train_metrics", "test_metrics", "weight_buffer", "batch_size", "valid_batch_size", "_kept")


class MultiGPUAddon(AddOnBase, Face):
    """Takes a list of devices and trains on each of them, one process a device.

    In a script, making the trainer starts it once more in every process, by Accelerate's launcher, and puts that in
    this process's place: what stands before the trainer runs again, what stands behind it only there. Under a launcher
    (``accelerate launch``, torchrun, srun) nothing is started; the list has to be as long as there are processes.

    In a session (a notebook, a prompt), `run` starts a worker on each device by a fork, which inherits everything that
    was defined, and puts what came out into the caller's objects: weights, optimizer, scheduler, history, logs, the
    best weights, the add-ons' state. The session itself stays on the CPU.

    Parameters
    ----------
    device : str, torch.device, or a list of these or of indices
        ``['cuda:0', 'cuda:1']``, ``[0, 1]``, ``['cpu', 'cpu']``. One device starts nothing.

    Raises
    ------
    ValueError
        When the list is empty, mixes kinds, or names a device twice or one that is not there.
    LaunchError
        When a launcher started another number of processes, this script cannot be started again, or the session has
        used a GPU already.

    Notes
    -----
    In a session, what other add-ons wrap around `run` happens in the workers when they come before this one in
    ``add_on(...)``. Attributes that a step sets on the trainer stay in the workers. After an error, the trainer is as
    it was before that `run`.

    Examples
    --------
    >>> Multi = MyTrainer.add_on(MultiGPUAddon)
    >>> trainer = Multi(model, device=["cuda:0", "cuda:1"], optimizer=optimizer)
    """

    # The trainer's.
    _place: Placement
    _recorder: Recorder

    def __init__(self, model: Any, device: Any = None, *args: Any, **kwargs: Any) -> None:
        self._devices: lists.Devices | None = None
        self._forks, self._precision = False, kwargs.get("mixed_precision")
        if not isinstance(device, (list, tuple)):
            super().__init__(model, device, *args, **kwargs)
            return
        self._devices, self._forks = _local(lists.read_devices(device, look()), self._precision or "no")
        if self._forks:
            self._start_in_session(model, *args, **kwargs)
        else:
            device = self._devices.names[0] if len(self._devices) == 1 else self._devices.kind
            super().__init__(model, device, *args, **kwargs)

    def _start_in_session(self, model: Any, *args: Any, **kwargs: Any) -> None:
        assert self._devices is not None  # _local has just found several
        if self._precision is None and isinstance(self, PrecisionMixerAddon):
            self._precision = choose(kwargs.get("precision", "auto"), self._devices.names)
        self._precision = resolve_precision(self._precision, torch.device(self._devices.kind))
        # The devices' precision may be impossible here.
        kwargs["mixed_precision"] = "no" if self._devices.kind != "cpu" else self._precision
        # Counting GPUs by the CUDA runtime would spoil them for the workers.
        with patch_environment(pytorch_nvml_based_cuda_check="1"):
            super().__init__(model, "cpu", *args, **kwargs)

    def run(self, n_epoch: Any = None, loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
        """Run here, or in a session on workers, whose outcome is put into this trainer."""
        if not self._forks or self._devices is None:
            return super().run(n_epoch, loader, valid_loader, **options)
        work = partial(self._work, n_epoch, loader, valid_loader, **options)
        environ = {"ACCELERATE_USE_CPU": "true"}
        if self._devices.kind != "cpu":
            environ = {"CUDA_VISIBLE_DEVICES": self.launch_config()["gpu_ids"]}
        outcome = run_workers(work, len(self._devices), self._devices.kind, environ)
        self.loader, self.valid_loader = loader, valid_loader
        self._put_back(outcome)
        return self.history

    def _work(self, *args: Any, **options: Any) -> dict[str, Any]:
        """In a worker: train as one of several processes, and return what the session has to get."""
        assert self._devices is not None  # there are workers of a list only
        self._forks = False
        AcceleratorState._reset_state(reset_partial_state=True)  # the session's, which is one process
        GradientState._reset_state()
        logs = [self._recorder.log_train, self._recorder.log_test]
        self._place.join(self, self._devices.kind, self._precision)
        self._recorder.join(self.metrics, self._place.processes, self._place.device)
        _fill([self._recorder.log_train, self._recorder.log_test], logs)
        super().run(*args, **options)
        return self._outcome()

    def launch_config(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return the Accelerate configuration that this trainer's devices mean.

        Parameters
        ----------
        path : path-like, optional
            Where to write it as YAML, for ``accelerate launch --config_file``.
        """
        device = self.accelerator.device
        devices = self._devices or lists.Devices(device.type, (device.index or 0,))
        precision = (self._forks and self._precision) or self.accelerator.mixed_precision
        config = lists.configuration(devices, look(), precision)
        if path is not None and self.accelerator.is_main_process:
            write_config(config, Path(path))
        return config

    # ------------------------------------------------------------------ from a worker to the session

    def _outcome(self) -> dict[str, Any]:
        """What a run has left in this worker."""
        model, recorder = self.model, self._recorder
        state = model.state_dict()
        return {
            "model": state,
            "buffers": {name: buffer for name, buffer in model.named_buffers() if name not in state},
            "modes": {name: module.training for name, module in model.named_modules()},
            "trained": Trained(model, self.optimizer).plain(),
            "parts": {name: part.state_dict() for name, part in _parts(self).items()},
            "generators": [generator.get_state() for generator in _generators(self)],
            "trainer": self.state_dict(),
            "rows": recorder.history.rows,
            "left": {name: getattr(self, name) for name in _LEFT if hasattr(self, name)},
            "ended": (recorder.call.stop_reason, recorder.call.wish),
            "logs": [_portable(recorder.log_train), _portable(recorder.log_test)],
        }

    def _put_back(self, outcome: dict[str, Any]) -> None:
        """Change the session's own objects, so that whoever holds one of them sees what came out."""
        self.model.load_state_dict(outcome["model"])
        for name, value in outcome["buffers"].items():
            self.model.get_buffer(name).data = value
        for name, training in outcome["modes"].items():
            self.model.get_submodule(name).training = training
        if self.optimizer is not None:
            options = outcome["parts"]["optimizer"]["param_groups"]
            put_trained(self.model, self.optimizer, outcome["trained"], {}, {}, options)
        for name, part in _parts(self).items():
            part.load_state_dict(outcome["parts"][name])
        for generator, state in zip(_generators(self), outcome["generators"], strict=True):
            generator.set_state(state)
        self.load_state_dict(outcome["trainer"])
        self._recorder.history.rows[:] = outcome["rows"]
        for name, value in outcome["left"].items():
            setattr(self, name, value)
        call = self._recorder.call
        call.stop_reason, call.wish = outcome["ended"]
        _fill([self._recorder.log_train, self._recorder.log_test], outcome["logs"])


def _local(devices: lists.Devices, precision: str) -> tuple[lists.Devices, bool]:
    """The devices of the processes here, as these see them, and whether `run` has to fork these processes.

    There is no return where they have to be started first.
    """
    machine = look()
    world = enter(os.environ, 0 if devices.kind == "cpu" else len(machine.visible))
    if world.launched or by_accelerate(os.environ):
        lists.check_count(devices, world)
        return (lists.numbered(devices) if world.launched else devices), False
    lists.check_there(devices, machine)
    if len(devices) > 1 and interactive():
        check_fork(devices.kind)
        return devices, True
    if len(devices) > 1:
        more = {name: value for name, value in lists.variables(devices, machine).items() if name not in os.environ}
        restart(lists.configuration(devices, machine, precision), more)
    return devices, False


def _parts(trainer: Face) -> dict[str, Any]:
    """The optimizer and the scheduler, as far as they have a state; the scheduler last, as it is read in."""
    parts = {"optimizer": trainer.optimizer, "scheduler": trainer.scheduler}
    return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def _generators(trainer: Face) -> list[torch.Generator]:
    loaders = [trainer.loader, *named(trainer.valid_loader).values()]
    return [generator for loader in loaders for generator in generators_of(loader)]


def _fill(logs: list[EpochLog], others: list[EpochLog]) -> None:
    """Give logs the values of others; who listens, and how values are kept, stays."""
    for log, other in zip(logs, others, strict=True):
        vars(log).update({name: value for name, value in vars(other).items() if name != "_noticed"})


def _portable(log: EpochLog) -> EpochLog:
    """The log without values that cannot be sent."""
    log.drain()
    for key, values in list(log.items()):
        try:
            pickle.dumps(values[:1])
        except Exception:
            del log[key]
    return log
