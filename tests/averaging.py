"""An add-on that evaluates, and is judged by, an average of the weights, and trains on with the weights themselves."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from zae_engine.trainer import AddOnBase


class Averaged(AddOnBase):
    """Swaps the average in around an evaluation and around `check_better`."""

    average = None

    def _live(self):
        return dict(self.model.state_dict())

    def optimize(self, window):
        super().optimize(window)
        self._average()

    @torch.no_grad()
    def _average(self):
        live = self._live()
        if self.average is None:
            self.average = {name: value.detach().clone() for name, value in live.items()}
        for name, value in live.items():
            self.average[name].lerp_(value, 0.1)

    @contextmanager
    def _swapped(self):
        before = {name: value.detach().clone() for name, value in self._live().items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(before)

    @torch.no_grad()
    def _put(self, values):
        for name, value in self._live().items():
            value.copy_(values[name])

    def run_epoch(self, loader, **kwargs):
        if self.mode == "train":
            return super().run_epoch(loader, **kwargs)
        with self._swapped():
            return super().run_epoch(loader, **kwargs)

    def check_better(self, cur_epoch, cur_loss):
        with self._swapped():
            better = super().check_better(cur_epoch, cur_loss)
        if better:
            self.judged = whole(self.average)
        return better


def whole(state):
    """Copies of a state's values, of spread ones the whole."""
    return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).detach().clone() for k, v in state.items()}
