"""Where a trainer trains: a device, a share of each batch, and model and optimizer as Accelerate has prepared them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ...checkpoint import save_weights, whole_state
from .. import refusals
from ..data.layout import Layout, Start
from ..data.plan import BatchPlan
from ..data.random_streams import set_streams
from ..data.window import Window
from ..interface import Face, decide
from ..processes.agreement import refuse_different
from ..processes.device import Device, make_accelerator, searching
from ..processes.group import Processes, is_sharded
from ..processes.max_wait import Guard
from ..several_optimizers import Optimizers, is_named
from .fixed_shards import ShardSum, check_divides
from .modes import Modes
from .same_model import SameModel
from .to_device import sender
from .trained_parameters import Trained, in_words
from .update import (
    DelegatedUpdate,
    NoUpdate,
    StepModule,
    evaluation_of,
    forward_of,
    make_update,
    prepare,
    prepare_again,
    spreads,
    unused,
    with_synced_batchnorm,
    without_gradient,
)

# How much is another than when it was prepared, the less first.
_NOTHING, _GROUPS, _PARAMETERS, _ANOTHER = range(4)
_MIDWAY = (
    "another model or optimizer was assigned in the middle of an epoch; assign it before run(), or in run_epoch before"
    " super().run_epoch(...), where the trainer prepares it"
)


class Placement:
    """A trainer's place among the processes, and what is prepared there for its steps.

    Parameters
    ----------
    trainer : Trainer
        Gets its device, precision and seed from here.
    device, mixed_precision
        As the trainer was given them.

    Attributes
    ----------
    accelerator : Accelerator
    device : torch.device
    moves : bool
        Whether batches have to be brought to the device.
    send : callable
        Returns a batch that is there.
    processes : Processes
    guard : Guard
        Of its waits.
    layout : Layout
        How a global batch is shared out.
    modes : Modes
        Which submodules train.
    prepared, optimizer
        What Accelerate has made of model and optimizer.
    update : DelegatedUpdate
        The calls of a step.
    forward, evaluate : callable
        Run a step in the prepared model, with and without exchanging gradients.
    in_step : bool
        Whether the processes have to call the model equally often in an evaluation.
    unproven : sequence of Tensor
        The parameters, until the first step has shown that it leaves their gradients alone.
    trained : Trained
        What is trained, as it was looked at last.
    trained_first : mapping
        What was trained when the trainer was made, as plain values.
    compares : bool
        Whether several processes have to train one model, and each holds all of it.
    """

    def __init__(
        self, trainer: Face, device: Device | Sequence[Device] | None = None, mixed_precision: str | None = None
    ) -> None:
        self.modes = Modes()
        self.prepared: Any = None
        self.optimizer: Any = None
        self.forward: Any = None
        self.evaluate: Any = None
        self.update: DelegatedUpdate = NoUpdate()
        self.unproven: Sequence[Tensor] = ()
        self.in_step = False
        self._same_model: SameModel | None = None
        self.compares = False
        self._compared: int | None = None  # the last step after which the processes were
        self._alike = False  # whether nothing was trained since DistributedDataParallel has made them so
        self.join(trainer, device, mixed_precision)

    def join(
        self, trainer: Face, device: Device | Sequence[Device] | None = None, mixed_precision: str | None = None
    ) -> None:
        """Take a place among the processes that train; a worker of a session does so anew."""
        handlers = searching(trainer.kwargs_handlers) if is_named(trainer.optimizer) else trainer.kwargs_handlers
        self.accelerator = make_accelerator(device, mixed_precision, handlers, trainer.max_wait)
        self.device: torch.device = self.accelerator.device
        self.moves, self.send = self.device.type != "cpu", sender(self.device)
        decide(trainer, device=self.device, mixed_precision=self.accelerator.mixed_precision)
        self.processes = Processes(self.accelerator)
        self.guard = Guard(trainer, self.processes, trainer.max_wait)
        decide(trainer, seed=self.processes.from_first(trainer.seed))
        check_divides(trainer.shards, self.processes.count)
        here = (self.processes.count, self.processes.index)
        self.layout = Layout(*here, trainer.gradient_accumulation_steps, trainer.shards, trainer.split_batches)
        self._prepared_for: tuple[nn.Module | None, Optimizer | None] = (None, None)
        # When it was looked at last, and when that was prepared which exchanges gradients.
        self.trained = self._exchanged = Trained(trainer.model, trainer.optimizer)
        self.trained_first = self.trained.plain()

    # ------------------------------------------------------------------ options that were assigned

    def awaits_epoch(self, trainer: Face) -> None:
        """Another model or optimizer: what is prepared is of the old one, until an epoch begins, or it is put back."""
        if self._prepared_for == (trainer.model, trainer.optimizer):
            self.make_update(trainer)
        else:
            self.update = NoUpdate(_MIDWAY)

    def clip_to(self, trainer: Face) -> None:
        """Another norm to clip to."""
        self.update.max_norm = trainer.gradient_clip

    def lay_out(self, trainer: Face) -> None:
        """Another number of micro-batches."""
        self.layout = replace(self.layout, micro_batches=trainer.gradient_accumulation_steps)

    def reseed(self, trainer: Face) -> None:
        """Another seed."""
        trainer.seed_was_given = True
        if self.update.shards is not None:
            self.update.shards.seed = trainer.seed

    # ------------------------------------------------------------------ batches

    def plan(
        self,
        trainer: Face,
        loader: Any,
        epoch: int = 0,
        start: Start | None = None,
        exceeds: Callable[[int, int], None] | None = None,
        keeps_ids: bool = False,
    ) -> BatchPlan:
        """How this process walks over a loader in the trainer's present mode; see `BatchPlan`."""
        start, training = start or Start(), trainer.mode == "train"
        layout = self.layout if training else replace(self.layout, micro_batches=1, shards=None)
        purpose = ("train", epoch) if training else ("test",)
        # Process 0 goes on with the stream that drew the order, as one process does.
        if self.processes.index > 0:
            start.began = partial(set_streams, self.device, trainer.seed, *purpose, "process", self.processes.index)
        return BatchPlan(
            loader,
            layout,
            self.processes,
            seeded=trainer.seeded_samples,
            key="/".join(map(str, (trainer.seed, *purpose))),
            start=start,
            exceeds=exceeds,
            keeps_ids=keeps_ids and training,
        )

    def window(self, trainer: Face, batch: Any) -> Window:
        """The window of a batch of the present plan, or of a global batch that came without one, on the device."""
        if self.moves:
            batch = self.send(batch)
        return (self.guard.plans.get(trainer.mode) or self.plan(trainer, None)).window(batch)

    def named(self, window: Window, results: list[dict[str, Any]]) -> list[Any]:
        """The optimizers that the step has named; a process that has run none, since it has no sample, is told."""
        names = [result.get("optimizer") for result in results if result]
        if self.layout.shards is None or self.processes.count == 1 or window.samples >= self.layout.shards:
            return names
        return [name for theirs in self.processes.gather(names) for name in theirs]

    # ------------------------------------------------------------------ model and optimizer

    def holds(self, trainer: Face) -> bool:
        """Whether the trainer's model and optimizer are what DeepSpeed or FSDP has prepared, and so was checked."""
        return self._prepared_for == (trainer.model, trainer.optimizer) and spreads(self.accelerator)

    def prepare(self, trainer: Face) -> None:
        """Prepare model and optimizer, or do so anew when something else is there, or trained, than was prepared.

        Asked once a run and once an epoch; every process calls it.
        """
        now = Trained(trainer.model, trainer.optimizer)
        change = now.agreed(self.processes, self._change(trainer, now))
        if change == _NOTHING:
            return
        if change == _ANOTHER:
            self._prepare_first(trainer)
        elif not spreads(self.accelerator):
            refusals.check_optimizer(trainer.optimizer, trainer.model, trainer.mode)
        if change == _PARAMETERS:
            self._prepare_anew(trainer, now)
        # Anew, as FSDP puts others in the parameters' place.
        self.trained = Trained(trainer.model, trainer.optimizer)
        self.make_update(trainer)

    def _change(self, trainer: Face, now: Trained) -> int:
        """What this process sees that is another than when it was prepared."""
        if self._prepared_for != (trainer.model, trainer.optimizer):
            return _ANOTHER
        before = self._exchanged
        searches = getattr(self.prepared, "find_unused_parameters", False)  # so it can do without frozen ones
        if now.begun_since(before) or now.new_since(before) or (before.begun_since(now) and not searches):
            return _PARAMETERS
        return _NOTHING if now.same_as(self.trained) else _GROUPS

    def _prepare_first(self, trainer: Face) -> None:
        if self._prepared_for != (None, None):
            self._let_go()
            self.accelerator.free_memory()  # which collects garbage, a fifth of a second long
        if trainer.sync_batchnorm and self.processes.count > 1:
            trainer.model = with_synced_batchnorm(trainer.model, self.device)
        if isinstance(trainer.optimizer, Optimizers) and spreads(self.accelerator):
            raise ValueError(
                f"several optimizers cannot be had under {self.accelerator.distributed_type.value}, which prepares one;"
                " train with plain data parallelism, or give one optimizer with several groups"
            )
        module, apart = StepModule(trainer.model), trainer.shards is not None
        prepared = prepare(self.accelerator, module, trainer.optimizer, trainer.gradient_clip, apart)
        self._prepared_for = (trainer.model, trainer.optimizer)
        self._place(trainer, *prepared)

    def _prepare_anew(self, trainer: Face, now: Trained) -> None:
        """Other parameters of the same model are trained than before."""
        spread, before = spreads(self.accelerator), self._exchanged
        if spread and not self.accelerator.is_fsdp2:
            others = [*now.begun_since(before), *before.begun_since(now)]
            raise ValueError(
                f"whether {in_words(others)} of the model is trained has changed, which"
                f" {self.accelerator.distributed_type.value} decides once, when it spreads the parameters; make the"
                " trainer anew over a model with what shall be trained, with the weights of this one (save_model)"
            )
        if self.processes.count > 1 and not spread:
            optimizer = self.optimizer
            self._let_go()
            module = StepModule(trainer.model)
            again = prepare_again(self.accelerator, module, optimizer, trainer.shards is not None)
            self._place(trainer, again, optimizer)
            return
        self._exchanged = now
        if not spread and self.accelerator.device_placement and not hasattr(trainer.model, "hf_device_map"):
            for parameter in now.new_since(before):
                parameter.data = parameter.data.to(self.device)

    def _let_go(self) -> None:
        """Forget what was prepared, whose hooks and buckets are there as long as anybody holds it."""
        self.prepared = self.optimizer = self.forward = self.evaluate = None
        self.update = NoUpdate()

    def _place(self, trainer: Face, prepared: Any, optimizer: Any) -> None:
        self.prepared, self.optimizer = prepared, optimizer
        if trainer.shards is not None:
            self.processes.same_weights(trainer.model)  # as DistributedDataParallel does
        inner = evaluation_of(prepared)
        self.forward, self.evaluate = forward_of(prepared), forward_of(inner)
        self._exchanged = Trained(trainer.model, trainer.optimizer)
        self._alike = True  # DistributedDataParallel makes it so
        self.in_step = self.processes.count > 1 and (not isinstance(inner, StepModule) or is_sharded(inner))

    def make_update(self, trainer: Face) -> None:
        """Decide which calls a step needs."""
        self.update = NoUpdate()
        if self.optimizer is None:
            return
        shards = None
        if trainer.shards is not None:
            count = trainer.progress_checker.get_step
            shards = ShardSum(trainer.model, self.processes, trainer.shards, self.device, trainer.seed, count)
        self.update = make_update(self.accelerator, self.prepared, self.optimizer, trainer.gradient_clip, shards)
        self.update.zero_grad()
        self.unproven = self.update.parameters

    def save_model(self, model: nn.Module, filename: str | PathLike[str]) -> None:
        """Write the model's weights; of several processes, all call it and the first one writes."""
        engine = hasattr(self.accelerator.state, "deepspeed_plugin") and self.accelerator.state.deepspeed_plugin
        state = whole_state(model) if is_sharded(model) or engine else None
        if self.processes.first:
            save_weights(model, filename, state)

    @property
    def own_optimizer(self) -> Any:
        """The optimizer inside of what Accelerate has made of it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # ------------------------------------------------------------------ whether the processes train one model

    @property
    def has_compared(self) -> bool:
        """Whether they were compared since the run began."""
        return self._compared is not None

    def begin_comparing(self, trainer: Face) -> None:
        """At the begin of a run: note what several processes are to have alike."""
        self._same_model, self._compared = None, None
        if self.processes.count > 1 and trainer.mode == "train" and not is_sharded(trainer.model):
            self._same_model = SameModel(self.processes, trainer)
        self.compares = self._same_model is not None

    def compare(self, trainer: Face, warn: Callable[[str, str], None]) -> None:
        """Refuse to go on with processes that no longer train one model; every process calls it, between two steps.

        Parameters
        ----------
        trainer : Trainer
        warn : callable
            Is told of what may be rounding.
        """
        step = trainer.progress_checker.get_step() - 1
        if self._same_model is None or self._compared == step:
            return
        earliest, first = self._compared is None, self._compared is None and self._alike
        self._compared, self._alike = step, False
        trained = {name for group in self.trained.groups for name in group}
        found = self._same_model.difference(trainer.model, first, trained)
        if earliest:
            self._same_model.look(trainer)
        if found is None:
            return
        words = found.words(step, trained)
        if not found.rounding:
            left_out = next(filter(None, self.processes.gather(without_gradient(self.prepared))), None)
            lacks = unused(in_words(left_out)) if left_out and found.name in trained else ""
            raise RuntimeError(self.untaken(trainer) or lacks or words)
        warn("one model", words)

    def untaken(self, trainer: Face) -> str | None:
        """What to say when parameters are trained whose gradients nobody exchanges; one process needs no exchange."""
        if self.processes.count == 1 or trainer.shards is not None or is_sharded(trainer.model):
            return None
        begun = Trained(trainer.model, trainer.optimizer).begun_since(self._exchanged)
        if not begun:
            return None
        return (
            f"{in_words(begun)} of the model began to be trained in the middle of an epoch, so that the processes train"
            " different models since then; let that begin before run(), or in run_epoch before super().run_epoch(...),"
            " where the trainer sees it on every process; with a checkpoint, resume='auto' goes back to it"
        )

    def refuse_different(self, trainer: Face, settings: dict[str, Any]) -> None:
        """Refuse, before the first batch, processes that would wait for each other for ever."""
        parameters = sum(p.numel() for p in trainer.model.parameters() if not is_lazy(p))
        refuse_different(self.processes, {**settings, "the number of parameters": parameters, "the seed": trainer.seed})
