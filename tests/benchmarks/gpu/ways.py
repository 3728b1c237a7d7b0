"""The ways to train a workload: a loop by hand, and the trainer; each keeps its model from one block to the next."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zae_engine.trainer import Trainer

from ..output import discarded
from .probes import Probe
from .workloads import Batch, Workload, loss_of

SWITCH = "ZAE_COPY_STREAM"


class Way:
    """A model with its optimizer, which is trained a block at a time.

    Parameters
    ----------
    workload : Workload
    device : torch.device
    compiled : bool
        Whether the model goes through ``torch.compile``.
    options : dict
        Of the optimizer, beside its own.
    """

    def __init__(self, workload: Workload, device: torch.device, compiled: bool, **options: Any) -> None:
        self.device, self.loader = device, workload.loader(device)
        self.own = workload.made(device)
        self.optimizer = workload.optimizer(self.own.parameters(), **options)
        # On a CPU this is a try: nothing that needs a compiler there.
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        self.model: Any = torch.compile(self.own, backend=backend) if compiled else self.own

    def block(self, probe: Probe, silent: bool = False) -> list[warnings.WarningMessage]:
        """Walk once over the loader, and return what was warned of.

        Parameters
        ----------
        probe : Probe
            Is told of each step.
        silent : bool
            Show nothing, so that no step reads a value.
        """
        with discarded("terminal"), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.walk(probe, silent)
        probe.check()
        return said

    def walk(self, probe: Probe, silent: bool) -> None:
        """Train on each batch of the loader."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """The weights as they are now, on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self.own.state_dict().items()}


class ByHand(Way):
    """What one writes without a trainer."""

    def walk(self, probe: Probe, silent: bool) -> None:
        """Copy, forward, backward, step."""
        kind, model, optimizer = self.device.type, self.model, self.optimizer
        self.own.train()
        for x, y in self.loader:
            probe.step()
            batch = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16):
                loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()


class Watched(Trainer):
    """Tells a probe of its steps."""

    probe: Probe

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss."""
        self.probe.step()
        return {"loss": loss_of(self.model, batch)}

    test_step = train_step


class ByTrainer(Way):
    """The trainer with its bar, as users have it.

    Parameters
    ----------
    beside : bool
        Whether batches are copied on a stream of their own.
    """

    def __init__(self, workload: Workload, device: torch.device, compiled: bool, beside: bool, **options: Any) -> None:
        super().__init__(workload, device, compiled, **options)
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = "1" if beside else "0"
        try:
            with discarded("terminal"):
                self.trainer = Watched(
                    self.model, device=device, mode="train", optimizer=self.optimizer, mixed_precision="bf16", seed=0
                )
        finally:
            os.environ.pop(SWITCH) if before is None else os.environ.update({SWITCH: before})

    def walk(self, probe: Probe, silent: bool) -> None:
        """Run an epoch."""
        self.trainer.probe, self.trainer.log_bar = probe, not silent
        self.trainer.run(n_epoch=1, loader=self.loader)


def ways_of(workload: Workload, compiled: bool) -> dict[str, tuple[Callable[[torch.device], Way], str]]:
    """How to make each row's way, and what the row is against; a way of that name comes first."""
    hand, zae = "by hand", "zae-engine"
    made: dict[str, tuple[Callable[[torch.device], Way], str]] = {
        hand: (lambda device: ByHand(workload, device, compiled), hand),
        zae: (lambda device: ByTrainer(workload, device, compiled, False), hand),
    }
    if not compiled:
        made[f"{zae}, copy stream"] = (lambda device: ByTrainer(workload, device, compiled, True), hand)
    if workload.fused and not compiled:
        fused = f"{hand}, fused"
        made[fused] = (lambda device: ByHand(workload, device, compiled, fused=True), hand)
        made[f"{zae}, fused"] = (lambda device: ByTrainer(workload, device, compiled, False, fused=True), fused)
    return made
