"""Stop when the monitored value no longer gets better."""

from __future__ import annotations

from typing import Any

from ..checks import check_number
from ..compose import AddOnBase


class EarlyStoppingAddon(AddOnBase):
    """Ends the run when the monitored value (``monitor=``) has not got better for a while.

    Parameters
    ----------
    patience : int
        After so many evaluations in a row without a better value the run ends.
    min_delta : float
        Only a change of more than this counts as better.

    Examples
    --------
    >>> Stopping = MyTrainer.add_on(EarlyStoppingAddon)
    >>> trainer = Stopping(model, optimizer=optimizer, patience=3)
    """

    def __init__(self, *args: Any, patience: int = 5, min_delta: float = 0.0, **kwargs: Any) -> None:
        check_number("patience", patience, 1, whole=True)
        check_number("min_delta", min_delta, 0)
        super().__init__(*args, **kwargs)
        self.patience, self.min_delta = patience, min_delta
        self._reference: float | None = None
        self._waited = 0

    def run(self, n_epoch: Any = None, loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
        """Run; called again after it has stopped, it waits anew."""
        if self._waited >= self.patience:
            self._waited = 0
        return super().run(n_epoch, loader, valid_loader, **options)

    def check_better(self, cur_epoch: int, cur_loss: float) -> bool:
        """Count the evaluations since the last better one, and stop when there were enough."""
        better: bool = super().check_better(cur_epoch, cur_loss)
        if self._counts(cur_loss):
            self._reference, self._waited = cur_loss, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            self.stop(f"{self.monitor} has not got better in {self._waited} evaluations")
        return better

    def _counts(self, value: float) -> bool:
        """Whether `value` is better than the reference by more than `min_delta`; NaN never is."""
        if self._reference is None:
            return value == value
        gain = self._reference - value if self.monitor_mode == "min" else value - self._reference
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """The reference value and how long was waited."""
        return {**super().state_dict(), "EarlyStoppingAddon": {"reference": self._reference, "waited": self._waited}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        own = state["EarlyStoppingAddon"]
        self._reference, self._waited = own["reference"], own["waited"]
