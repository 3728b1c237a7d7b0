"""Forward, backward, clip and step: through Accelerate, or by the torch calls that Accelerate's reduce to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..data.window import Items, Micro, Window
from ..processes.group import is_sharded
from ..several_optimizers import Optimizers
from .fixed_shards import ShardSum
from .trained_parameters import in_words

Step = Callable[[Any], dict[str, Any]]

_PARAMS = operator.itemgetter("params")
_PLAIN = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)

_SEARCH = "kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)]"
_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class StepModule(nn.Module):
    """What Accelerate prepares: a container whose forward is the user's step.

    So autocast, compile and gradient synchronisation wrap the whole step, while the user's module inside stays as it
    is: its methods can be called, and its keys have no prefix.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, step: Step, batch: Any) -> dict[str, Any]:
        values = step(batch)
        return dict(values) if isinstance(values, dict) else values  # Accelerate rebuilds no subclass of dict


def _call(step: Step, batch: Any) -> dict[str, Any]:
    return step(batch)


_plainly: Callable[[Step, Any], dict[str, Any]] = getattr(operator, "call", _call)  # which Python 3.10 does not have


def forward_of(prepared: nn.Module) -> Callable[[Step, Any], dict[str, Any]]:
    """How to run a step in the prepared module; a plain call when Accelerate put nothing around it."""
    if isinstance(prepared, DistributedDataParallel):
        held = [(n, p) for n, p in prepared.module.named_parameters() if p.requires_grad]
        return partial(_in_parallel, prepared, held)
    return _plainly if type(prepared) is StepModule and "forward" not in vars(prepared) else prepared


def _in_parallel(prepared: nn.Module, held: list[tuple[str, nn.Parameter]], step: Step, batch: Any) -> dict[str, Any]:
    try:
        values: dict[str, Any] = prepared(step, batch)
        return values
    except RuntimeError as error:
        if "find_unused_parameters" not in str(error):
            raise
        if frozen := [name.removeprefix("model.") for name, p in held if not p.requires_grad]:
            raise RuntimeError(
                f"{in_words(frozen)} of the model got frozen in the middle of an epoch, and the processes still wait"
                " for the gradients; freeze before run(), or in run_epoch before super().run_epoch(...), where the"
                f" trainer sees it; or give {_SEARCH}"
            ) from error
        raise RuntimeError(unused("some parameters")) from error


def unused(parameters: str) -> str:
    """What to say of parameters whose gradients do not come."""
    return (
        f"{parameters} of the model had no part in the last step's loss, for whose gradients the processes wait; freeze"
        f" them before the epoch (requires_grad_(False)), or give {_SEARCH}, which costs a search each step"
    )


def without_gradient(prepared: Any) -> list[str]:
    """The names of what the processes exchange and the last step gave no gradient, though they do not search."""
    if not isinstance(prepared, DistributedDataParallel) or prepared.find_unused_parameters:
        return []
    named = prepared.module.named_parameters()
    return [name.removeprefix("model.") for name, p in named if p.requires_grad and p.grad is None]


def prepare(
    accelerator: Accelerator, module: StepModule, optimizer: Optimizer | None, max_norm: float, apart: bool
) -> tuple[Any, Any]:
    """Return module and optimizer as Accelerate prepares them.

    Parameters
    ----------
    module : StepModule
    optimizer : Optimizer or None
    max_norm : float
        What DeepSpeed, whose engine clips by itself, clips to.
    apart : bool
        Leave out what exchanges gradients, because the trainer does it.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = 1  # for its reports of speed; it would ask a prepared loader
        settings["gradient_clipping"] = max_norm
    if not apart and not _is_alone(accelerator) and not is_sharded(module.model):
        prepared: tuple[Any, Any] = accelerator.prepare(module, optimizer)  # a None stays None
        return prepared
    if apart and (spreads(accelerator) or is_sharded(module.model)):
        raise ValueError(
            "shards= sums whole gradients on each process, but the model's parameters are spread over the processes"
            " (FSDP or DeepSpeed); leave shards= out, or train with plain data parallelism"
        )
    whole = accelerator.prepare_model(module, evaluation_mode=True)
    return whole, None if optimizer is None else accelerator.prepare_optimizer(optimizer)


def prepare_again(accelerator: Accelerator, module: StepModule, optimizer: Any, apart: bool) -> Any:
    """Return a module anew as Accelerate prepares it; the optimizer, which it has prepared before, stays as it is."""
    accelerator.free_memory()  # which collects garbage, a fifth of a second long: hooks of what was prepared before
    without = apart or _is_alone(accelerator) or is_sharded(module.model)
    whole = accelerator.prepare_model(module, evaluation_mode=without)
    if optimizer is not None:
        accelerator.prepare_optimizer(optimizer)  # is noted only; to prepare it again would cast its state
    return whole


def _is_alone(accelerator: Accelerator) -> bool:
    """Whether a launcher has started one process only, which has nobody to exchange gradients with."""
    return accelerator.num_processes == 1 and accelerator.distributed_type in _PLAIN[1:]


def spreads(accelerator: Accelerator) -> bool:
    """Whether Accelerate spreads the parameters over the processes: FSDP, DeepSpeed, Megatron-LM."""
    return accelerator.distributed_type in _SHARDING


def with_synced_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with BatchNorm over all processes, on the same parameters."""
    if device.type == "cpu":
        raise ValueError(
            "sync_batchnorm=True needs GPUs, since torch's SyncBatchNorm does not run on the CPU; leave it out there,"
            " and take GroupNorm, or shards=, for the same model on any number of processes"
        )
    synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synced


def evaluation_of(prepared: nn.Module) -> nn.Module:
    """What to evaluate in: inside DistributedDataParallel, whose forward would wait for the other processes."""
    return prepared.module if isinstance(prepared, DistributedDataParallel) else prepared


class DelegatedUpdate:
    """One optimizer step with every call made through Accelerate.

    Parameters
    ----------
    accelerator : Accelerator
    prepared : nn.Module
        The prepared `StepModule`.
    optimizer : Optimizer
        The prepared optimizer.
    max_norm : float
        Clip the gradients' norm to this; 0 does not clip.
    shards : ShardSum, optional
        How the gradients of shards are summed, when global batches are cut into such.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        prepared: nn.Module,
        optimizer: Optimizer,
        max_norm: float = 0.0,
        shards: ShardSum | None = None,
    ) -> None:
        self.accelerator, self.prepared = accelerator, prepared
        self.optimizer = optimizer
        self.max_norm, self.shards, self.norm_name = max_norm, shards, "grad_norm"
        inner = getattr(optimizer, "optimizer", optimizer)
        self.several: Optimizers | None = inner if isinstance(inner, Optimizers) else None
        self._engine = accelerator.distributed_type == DistributedType.DEEPSPEED
        self._exchanges = (accelerator.num_processes > 1 or self._engine) and shards is None
        # FSDP2's modules, for which Accelerate's no_sync does nothing when it did not make them itself.
        self._fully_sharded: list[Any] = [m for m in prepared.modules() if hasattr(m, "set_requires_gradient_sync")]
        self._clears_plainly = False
        self._find_parameters()

    def _find_parameters(self) -> None:
        """Note what the optimizer steps: gradients of other parameters are not cleared, and not this trainer's."""
        held = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        own = [p for p in self.prepared.parameters() if held.pop(id(p), None) is not None]
        self.parameters = [*own, *held.values()]  # in the model's order, as one clips by hand
        self.stepped = self.parameters  # by the step that is being made
        self._sizes = [*map(len, map(_PARAMS, self.optimizer.param_groups))]

    def zero_grad(self) -> None:
        """Forget the gradients of what the optimizer steps; some parameters may have been added in the middle."""
        if [*map(len, map(_PARAMS, self.optimizer.param_groups))] != self._sizes:
            self._find_parameters()
        if not self._clears_plainly:
            self.optimizer.zero_grad()
            return
        # What torch's zero_grad comes to, without its profiler's record, which takes longer than the rest of it.
        for parameter in self.parameters:
            parameter.grad = None

    def micros(self, window: Window) -> Iterable[Micro]:
        """The window's micro-batches, each to be followed by its backward; the processes meet at the last one only."""
        if self.shards is not None:
            return self.shards.micros(window, self.parameters)
        return self._until_last(window.micros) if self._exchanges else window.micros

    def _until_last(self, micros: list[Micro]) -> Iterator[Micro]:
        for micro in micros[:-1]:
            with self._apart():
                yield micro
        yield micros[-1]

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Inside, a backward adds to this process's gradients only."""
        sharded = self._fully_sharded
        self.accelerator.gradient_state._set_sync_gradients(False)  # by which DeepSpeed's backward knows not to step
        try:
            with self.accelerator.no_sync(self.prepared) if not sharded else nullcontext():
                for module in sharded:
                    module.set_requires_gradient_sync(False, recurse=False)
                yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)
            for module in sharded:
                module.set_requires_gradient_sync(True, recurse=False)

    def backward(self, loss: Tensor, share: Items | None) -> None:
        """Add the gradients of `loss`, weighted by its share of the window (None: it is the whole window)."""
        options = {"scale_wrt_gas": False} if self._engine else {}  # its own division by the number of micro-batches
        self.accelerator.backward(loss if share is None else _weighted(loss, share), **options)

    def rescale(self, factor: Items) -> None:
        """Multiply the gradients, when the shares were estimates."""
        if self._engine:
            raise RuntimeError(
                "under DeepSpeed, the step has been taken when a window's 'num_items' is known; leave num_items or"
                " gradient_accumulation_steps out, or train with FSDP2, where both together are exact"
            )
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def choose(self, names: Sequence[Any], results: list[dict[str, Any]]) -> None:
        """Of several optimizers, have the one stepped that the step has named, or all.

        Parameters
        ----------
        names : sequence of str or None
            What the step returned as ``"optimizer"`` for each micro-batch.
        results : list of dict
            What it returned; gets the loss by that name, too.
        """
        assert self.several is not None
        name = self.several.choose(names)
        held = {id(p) for p in self.several.held()}
        self.stepped = self.parameters if name is None else [p for p in self.parameters if id(p) in held]
        self.norm_name = "grad_norm" if name is None else f"grad_norm/{name}"
        for result in results:
            result.pop("optimizer", None)
            if name is not None:
                result.setdefault(f"loss/{name}", result["loss"])

    def clip(self) -> Any:
        """Clip the gradients to `max_norm`; return their norm before that."""
        return _whole(self.accelerator.clip_grad_norm_(self.stepped, self.max_norm))

    def step(self) -> bool:
        """Step; return whether the optimizer did (fp16 leaves out a step whose gradients overflowed)."""
        self.optimizer.step()
        return not self.accelerator.optimizer_step_was_skipped


class DirectUpdate(DelegatedUpdate):
    """The same step without what Accelerate's wrappers look up at each call; equal to the bit."""

    def __init__(self, accelerator: Accelerator, prepared: nn.Module, optimizer: Optimizer, *options: Any) -> None:
        super().__init__(accelerator, prepared, optimizer, *options)
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self._clears_plainly = type(self.optimizer).zero_grad is Optimizer.zero_grad

    def backward(self, loss: Tensor, share: Items | None) -> None:
        (loss if share is None else _weighted(loss, share)).backward()  # type: ignore[no-untyped-call]

    def clip(self) -> Any:
        return _whole(nn.utils.clip_grad_norm_(self.stepped, self.max_norm))

    def step(self) -> bool:
        self.optimizer.step()
        return True


def _weighted(loss: Tensor, share: Items) -> Tensor:
    """The loss times its share, in its own precision but at least float32: shares are divided in float64."""
    narrow = share.to(torch.promote_types(loss.dtype, torch.float32)) if isinstance(share, Tensor) else share
    return loss * narrow


def _whole(norm: Any) -> Any:
    """The norm of sharded gradients as a plain tensor, which can later be read without the other processes."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def needs_accelerate(accelerator: Accelerator, optimizer: Optimizer) -> bool:
    """Whether Accelerate's calls do more here than torch's own: a scaler, sharding, an engine, LOMO."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return (
        accelerator.scaler is not None
        or accelerator.distributed_type not in _PLAIN
        or type(inner).__module__.startswith("lomo_optim")
    )


class NoUpdate(DelegatedUpdate):
    """What a trainer without optimizer has: whoever trains by it hears what is missing."""

    def __init__(self, why: str = "") -> None:
        self.parameters, self.shards, self.several = [], None, None
        self._why = why or "this trainer has no optimizer, so nothing can be trained; give optimizer= when it is made"

    def zero_grad(self) -> None:
        raise ValueError(self._why)


def make_update(
    accelerator: Accelerator,
    prepared: nn.Module,
    optimizer: Optimizer,
    max_norm: float = 0.0,
    shards: ShardSum | None = None,
) -> DelegatedUpdate:
    """Decide, once before the loop, which calls a step needs."""
    kind = DelegatedUpdate if needs_accelerate(accelerator, optimizer) else DirectUpdate
    return kind(accelerator, prepared, optimizer, max_norm, shards)
