"""The part of the trainer that takes its place: a device, a share of each batch, model and optimizer prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
from .shards import ShardSum, check_divides
from .trained import Trained, in_words
from .update import (
    NoUpdate,
    StepModule,
    evaluation_of,
    forward_of,
    make_update,
    prepare,
    prepare_again,
    spreads,
    with_synced_batchnorm,
)


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
    _prepared: Any = None
    _prepared_optimizer: Any = None
    _forward: Any = None
    _evaluator: Any = None
    _update: Any = None
    _unproven: Sequence[Tensor] = ()

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
        self._trained_first = Trained(self.model, self.optimizer).plain()
        # When it was looked at last, and when that was prepared which exchanges gradients.
        self._trained = self._exchanged = Trained(self.model, self.optimizer)

    def _prepare(self) -> None:
        """Prepare model and optimizer, or do so anew when something else is there, or trained, than was prepared.

        Asked once a run and once an epoch; every process calls it.
        """
        fresh = self._prepared_for != (self.model, self.optimizer)
        now = Trained(self.model, self.optimizer)
        if not now.agreed(self._processes, fresh or not now.same_as(self._trained)):
            return
        if fresh:
            self._prepare_first()
        else:
            self._prepare_anew(now)
        self._trained = Trained(self.model, self.optimizer)  # anew, as FSDP puts others in the parameters' place
        self._make_update()

    def _prepare_first(self) -> None:
        if self._prepared_for != (None, None):
            self._let_go()
            self.accelerator.free_memory()  # which collects garbage, a fifth of a second long
        if self.sync_batchnorm and self._processes.count > 1:
            self.model = with_synced_batchnorm(self.model, self.device)
        module, apart = StepModule(self.model), self.shards is not None
        prepared = prepare(self.accelerator, module, self.optimizer, self.gradient_clip, apart)
        self._prepared_for = (self.model, self.optimizer)
        self._place(*prepared)

    def _prepare_anew(self, now: Trained) -> None:
        """Other parameters of the same model are trained than before, or in other groups of the optimizer."""
        spread, before = spreads(self.accelerator), self._exchanged
        if not spread:
            checks.check_optimizer(self.optimizer, self.model, self.mode)
        begun, ended, new = now.begun_since(before), before.begun_since(now), now.new_since(before)
        if not (begun or ended or new):
            return  # other groups are the update's to find
        if spread and not self.accelerator.is_fsdp2:
            raise ValueError(
                f"whether {in_words(begun or ended)} of the model is trained has changed, which"
                f" {self.accelerator.distributed_type.value} decides once, when it spreads the parameters; make the"
                " trainer anew over a model with what shall be trained, with the weights of this one (save_model)"
            )
        searches = getattr(self._prepared, "find_unused_parameters", False)  # so it does without frozen ones
        if self._processes.count > 1 and not spread and (begun or new or not searches):
            optimizer = self._prepared_optimizer
            self._let_go()
            module = StepModule(self.model)
            self._place(prepare_again(self.accelerator, module, optimizer, self.shards is not None), optimizer)
        elif not spread and self.accelerator.device_placement and not hasattr(self.model, "hf_device_map"):
            for parameter in new:
                parameter.data = parameter.data.to(self.device)

    def _let_go(self) -> None:
        """Forget what was prepared, whose hooks and buckets are there as long as anybody holds it."""
        self._prepared = self._prepared_optimizer = self._forward = self._evaluator = self._update = None

    def _place(self, prepared: Any, optimizer: Any) -> None:
        self._prepared, self._prepared_optimizer = prepared, optimizer
        if self.shards is not None:
            self._processes.same_weights(self.model)  # as DistributedDataParallel does
        inner = evaluation_of(prepared)
        self._forward, self._evaluator = forward_of(prepared), forward_of(inner)
        self._exchanged = Trained(self.model, self.optimizer)
        self._in_step = self._processes.count > 1 and (not isinstance(inner, StepModule) or is_sharded(inner))

    def _make_update(self) -> None:
        """Decide which calls a step needs."""
        self._update = NoUpdate()
        if self._prepared_optimizer is None:
            return
        shards = None
        if self.shards is not None:
            count = self.progress_checker.get_step
            shards = ShardSum(self.model, self._processes, self.shards, self.device, self.seed, count)
        parts = (self.accelerator, self._prepared, self._prepared_optimizer, self.gradient_clip, shards)
        self._update = make_update(*parts)
        self._update.zero_grad()
        self._unproven = self._update.parameters

    def _untaken(self) -> str | None:
        """What to say when parameters are trained whose gradients nobody exchanges; one process needs no exchange."""
        if self._processes.count == 1 or self.shards is not None or is_sharded(self.model):
            return None
        begun = Trained(self.model, self.optimizer).begun_since(self._exchanged)
        if not begun:
            return None
        return (
            f"{in_words(begun)} of the model began to be trained in the middle of an epoch, so that the processes train"
            " different models since then; let that begin before run(), or in run_epoch before super().run_epoch(...),"
            " where the trainer sees it on every process; with a checkpoint, resume='auto' goes back to it"
        )

    def _refuse_different(self, settings: dict[str, Any]) -> None:
        """Refuse, before the first batch, processes that would wait for each other for ever."""
        parameters = sum(p.numel() for p in self.model.parameters() if not is_lazy(p))
        refuse_different(self._processes, {**settings, "the number of parameters": parameters})
