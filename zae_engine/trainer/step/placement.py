"""The part of the trainer that takes its place: a device, a share of each batch, model and optimizer prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .. import checks
from ..data.layout import Layout
from ..processes.agreement import refuse_different
from ..processes.device import Device, make_accelerator
from ..processes.group import Processes, is_sharded
from ..processes.guard import Guard
from ..records.metrics import Measures
from ..records.recorder import Records
from .modes import Modes
from .same_model import OneModel
from .shards import ShardSum, check_divides
from .trained import Trained, in_words
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


class Placing(Records):
    """What `Trainer` needs before it can train."""

    _prepared: Any = None
    _prepared_optimizer: Any = None
    _forward: Any = None
    _evaluator: Any = None
    _update: DelegatedUpdate = NoUpdate()
    _unproven: Sequence[Tensor] = ()
    _one_model: OneModel | None = None

    def _join(self, device: Device | Sequence[Device] | None, mixed_precision: str | None) -> None:
        """Take a place among the processes that train: a device, a share of each batch, what may be written."""
        self.accelerator = make_accelerator(device, mixed_precision, self.kwargs_handlers, self.max_wait)
        self._decide(device=self.accelerator.device, mixed_precision=self.accelerator.mixed_precision)
        self._moves = self.device.type != "cpu"
        self._processes = Processes(self.accelerator)
        self._guard = Guard(self, self._processes, self.max_wait)
        self._decide(seed=self._processes.from_first(self.seed))
        check_divides(self.shards, self._processes.count)
        here = (self._processes.count, self._processes.index)
        self._layout = Layout(*here, self.gradient_accumulation_steps, self.shards, self.split_batches)
        self._measures = {
            mode: Measures(self.metrics, self._routes, self.device, self._processes) for mode in checks.MODES
        }
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
        now = Trained(self.model, self.optimizer)
        change = now.agreed(self._processes, self._change(now))
        if change == _NOTHING:
            return
        if change == _ANOTHER:
            self._prepare_first()
        elif not spreads(self.accelerator):
            checks.check_optimizer(self.optimizer, self.model, self.mode)
        if change == _PARAMETERS:
            self._prepare_anew(now)
        self._trained = Trained(self.model, self.optimizer)  # anew, as FSDP puts others in the parameters' place
        self._make_update()

    def _change(self, now: Trained) -> int:
        """What this process sees that is another than when it was prepared."""
        if self._prepared_for != (self.model, self.optimizer):
            return _ANOTHER
        before = self._exchanged
        searches = getattr(self._prepared, "find_unused_parameters", False)  # so it can do without frozen ones
        if now.begun_since(before) or now.new_since(before) or (before.begun_since(now) and not searches):
            return _PARAMETERS
        return _NOTHING if now.same_as(self._trained) else _GROUPS

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
        """Other parameters of the same model are trained than before."""
        spread, before = spreads(self.accelerator), self._exchanged
        if spread and not self.accelerator.is_fsdp2:
            others = [*now.begun_since(before), *before.begun_since(now)]
            raise ValueError(
                f"whether {in_words(others)} of the model is trained has changed, which"
                f" {self.accelerator.distributed_type.value} decides once, when it spreads the parameters; make the"
                " trainer anew over a model with what shall be trained, with the weights of this one (save_model)"
            )
        if self._processes.count > 1 and not spread:
            optimizer = self._prepared_optimizer
            self._let_go()
            module = StepModule(self.model)
            self._place(prepare_again(self.accelerator, module, optimizer, self.shards is not None), optimizer)
            return
        self._exchanged = now
        if not spread and self.accelerator.device_placement and not hasattr(self.model, "hf_device_map"):
            for parameter in now.new_since(before):
                parameter.data = parameter.data.to(self.device)

    def _let_go(self) -> None:
        """Forget what was prepared, whose hooks and buckets are there as long as anybody holds it."""
        self._prepared = self._prepared_optimizer = self._forward = self._evaluator = None
        self._update = NoUpdate()

    def _place(self, prepared: Any, optimizer: Any) -> None:
        self._prepared, self._prepared_optimizer = prepared, optimizer
        if self.shards is not None:
            self._processes.same_weights(self.model)  # as DistributedDataParallel does
        inner = evaluation_of(prepared)
        self._forward, self._evaluator = forward_of(prepared), forward_of(inner)
        self._exchanged, self._alike = Trained(self.model, self.optimizer), True  # DistributedDataParallel makes it so
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

    def _begin_comparing(self) -> None:
        """At the begin of a run: note what several processes are to have alike."""
        self._one_model = None
        if self._processes.count > 1 and self.mode == "train" and not is_sharded(self.model):
            self._one_model = OneModel(self._processes, self)
        self._compared: int | None = None  # the last step after which it was

    def _compare_processes(self) -> None:
        """Refuse to go on with processes that no longer train one model; every process calls it, between two steps."""
        step = self.progress_checker.get_step() - 1
        if self._one_model is None or self._compared == step:
            return
        earliest, first = self._compared is None, self._compared is None and self._alike
        self._compared, self._alike = step, False
        trained = {name for group in self._trained.groups for name in group}
        found = self._one_model.difference(self.model, first, trained)
        if earliest:
            self._one_model.look(self)
        if found is None:
            return
        words = found.words(step, trained)
        if not found.rounding:
            left_out = next(filter(None, self._processes.gather(without_gradient(self._prepared))), None)
            lacks = unused(in_words(left_out)) if left_out and found.name in trained else ""
            raise RuntimeError(self._untaken() or lacks or words)
        self._warn_once("one model", words)

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
        refuse_different(self._processes, {**settings, "the number of parameters": parameters, "the seed": self.seed})
