"""What an evaluation changes, and puts back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..data.random_streams import set_streams, streams_kept


@contextmanager
def evaluation(model: nn.Module, device: torch.device, seed: int, epoch: int) -> Iterator[None]:
    """Evaluate inside, without gradients: module modes and random streams are afterwards what they were.

    Parameters
    ----------
    model : nn.Module
        Set to evaluation.
    device : torch.device
        Whose random stream is put back, beside the CPU's.
    seed, epoch : int
        The evaluation draws from a stream of its own, which depends on these only.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), streams_kept(device):
            set_streams(device, seed, "test", epoch)
            yield
    finally:
        for module, training in before:
            module.training = training
