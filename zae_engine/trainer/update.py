"""Forward, backward, clip and step: through Accelerate, or by the torch calls that Accelerate's reduce to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from .plan import Items

Step = Callable[[Any], dict[str, Any]]

_PLAIN = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)


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


def forward_of(prepared: nn.Module) -> Callable[[Step, Any], dict[str, Any]]:
    """How to run a step in the prepared module; a plain call when Accelerate put nothing around it."""
    return _call if type(prepared) is StepModule and "forward" not in vars(prepared) else prepared


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
    """

    def __init__(self, accelerator: Accelerator, prepared: nn.Module, optimizer: Optimizer, max_norm: float) -> None:
        self.accelerator, self.prepared = accelerator, prepared
        self.optimizer = optimizer
        self.max_norm = max_norm
        self._find_parameters()

    def _find_parameters(self) -> None:
        """Note what the optimizer steps: gradients of other parameters are not cleared, and not this trainer's."""
        held = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        own = [p for p in self.prepared.parameters() if held.pop(id(p), None) is not None]
        self.parameters = [*own, *held.values()]  # in the model's order, as one clips by hand

    def zero_grad(self) -> None:
        if sum(len(group["params"]) for group in self.optimizer.param_groups) != len(self.parameters):
            self._find_parameters()  # some were added in the middle of the run
        self._clear()

    def _clear(self) -> None:
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor, share: Items | None) -> None:
        """Add the gradients of `loss`, weighted by its share of the window (None: it is the whole window)."""
        self.accelerator.backward(loss if share is None else loss * share)

    def rescale(self, factor: Items) -> None:
        """Multiply the gradients, when the shares were estimates."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def clip(self) -> Tensor | None:
        """Clip the gradients; return their norm before that, or None when there is nothing to clip to."""
        return self.accelerator.clip_grad_norm_(self.parameters, self.max_norm) if self.max_norm else None

    def step(self) -> bool:
        """Step; return whether the optimizer did (fp16 leaves out a step whose gradients overflowed)."""
        self.optimizer.step()
        return not self.accelerator.optimizer_step_was_skipped


class DirectUpdate(DelegatedUpdate):
    """The same step without what Accelerate's wrappers look up at each call; equal to the bit."""

    def __init__(self, accelerator: Accelerator, prepared: nn.Module, optimizer: Optimizer, max_norm: float) -> None:
        super().__init__(accelerator, prepared, optimizer, max_norm)
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self._plain_clear = type(self.optimizer).zero_grad is Optimizer.zero_grad

    def _clear(self) -> None:
        if not self._plain_clear:
            return self.optimizer.zero_grad()
        # What torch's zero_grad comes to, without its profiler's record, which takes longer than the rest of it.
        for parameter in self.parameters:
            parameter.grad = None

    def backward(self, loss: Tensor, share: Items | None) -> None:
        (loss if share is None else loss * share).backward()  # type: ignore[no-untyped-call]

    def clip(self) -> Tensor | None:
        return nn.utils.clip_grad_norm_(self.parameters, self.max_norm) if self.max_norm else None

    def step(self) -> bool:
        self.optimizer.step()
        return True


def needs_accelerate(accelerator: Accelerator, optimizer: Optimizer) -> bool:
    """Whether Accelerate's calls do more here than torch's own: a scaler, sharding, an engine, LOMO."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return (
        accelerator.scaler is not None
        or accelerator.distributed_type not in _PLAIN
        or type(inner).__module__.startswith("lomo_optim")
    )


def make_update(
    accelerator: Accelerator, prepared: nn.Module, optimizer: Optimizer, max_norm: float = 0.0
) -> DelegatedUpdate:
    """Decide, once before the loop, which calls a step needs."""
    kind = DelegatedUpdate if needs_accelerate(accelerator, optimizer) else DirectUpdate
    return kind(accelerator, prepared, optimizer, max_norm)
