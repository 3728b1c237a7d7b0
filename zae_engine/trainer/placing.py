"""The part of the trainer that takes its place: a device, a share of each batch, model and optimizer prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from . import checks
from .agreement import refuse_different
from .device import Device, make_accelerator
from .layout import Layout
from .metrics import Measures
from .modes import Modes
from .processes import Processes, is_sharded
from .records import Records
from .shards import check_divides
from .update import StepModule, evaluation_of, forward_of, prepare, with_synced_batchnorm


class Placing(Records):
    """What `Trainer` needs before it can train."""

    device: torch.device
    seed: int
    shards: int | None
    gradient_clip: float
    gradient_accumulation_steps: int
    sync_batchnorm: bool
    metrics: dict[str, Any]
    _split_batches: bool
    _kwargs_handlers: Sequence[Any] | None

    def _join(self, device: Device | Sequence[Device] | None, mixed_precision: str | None) -> None:
        """Take a place among the processes that train: a device, a share of each batch, what may be written."""
        self.accelerator = make_accelerator(device, mixed_precision, self._kwargs_handlers)
        self.device, self._moves = self.accelerator.device, self.accelerator.device.type != "cpu"
        self._processes = Processes(self.accelerator)
        self.seed = self._processes.from_first(self.seed)
        check_divides(self.shards, self._processes.count)
        here = (self._processes.count, self._processes.index)
        self._layout = Layout(*here, self.gradient_accumulation_steps, self.shards, self._split_batches)
        self._measures = {mode: Measures(self.metrics, self.device, self._processes) for mode in checks.MODES}
        self._modes = Modes()
        self._start_logs()
        self._prepared_for: tuple[nn.Module | None, Optimizer | None] = (None, None)

    def _prepare(self) -> None:
        """Prepare model and optimizer, when that was not done yet or the user has put others in their place."""
        if self._prepared_for == (self.model, self.optimizer):
            return
        if self._prepared_for != (None, None):
            self.accelerator.free_memory()  # which collects garbage, a fifth of a second long
        if self.sync_batchnorm and self._processes.count > 1:
            self.model = with_synced_batchnorm(self.model, self.device)
        module, apart = StepModule(self.model), self.shards is not None
        prepared = prepare(self.accelerator, module, self.optimizer, self.gradient_clip, apart)
        self._prepared, self._prepared_optimizer = prepared
        if self.shards is not None:
            self._processes.same_weights(self.model)  # as DistributedDataParallel does
        inner = evaluation_of(self._prepared)
        self._forward, self._evaluator = forward_of(self._prepared), forward_of(inner)
        self._in_step = self._processes.count > 1 and (not isinstance(inner, StepModule) or is_sharded(inner))
        self._prepared_for = (self.model, self.optimizer)

    def _refuse_different(self, settings: dict[str, Any]) -> None:
        """Refuse, before the first batch, processes that would wait for each other for ever."""
        parameters = sum(p.numel() for p in self.model.parameters() if not is_lazy(p))
        refuse_different(self._processes, {**settings, "the number of parameters": parameters})
