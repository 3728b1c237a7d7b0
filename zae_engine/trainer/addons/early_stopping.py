"""Stop when the monitored value no longer gets better."""

from __future__ import annotations

from typing import Any

from ...checkpoint.best_rule import is_better, is_finite
from ..compose import AddOnBase
from ..options import number, setting
from ..records.recorder import Recorder
from ..refusals import check_number


class EarlyStoppingAddon(AddOnBase):
    """Ends the run when the monitored value (``monitor=``) has not got better for a while.

    NaN and infinities are never better, so they count as waiting.

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

    _recorder: Recorder  # the trainer's

    patience: int = setting(number("patience", 1, whole=True))
    min_delta: float = setting(number("min_delta", 0))

    def __init__(self, *args: Any, patience: int = 5, min_delta: float = 0.0, **kwargs: Any) -> None:
        check_number("patience", patience, 1, whole=True)
        check_number("min_delta", min_delta, 0)
        super().__init__(*args, **kwargs)
        self.patience, self.min_delta = patience, min_delta
        self._reference: float | None = None
        self._waited = 0
        self._watched = self._recorder.best.monitor.watched

    def run(self, n_epoch: Any = None, loader: Any = None, valid_loader: Any = None, **options: Any) -> Any:
        """Run; called again after it has stopped, it waits anew."""
        if self._waited >= self.patience:
            self._waited = 0
        return super().run(n_epoch, loader, valid_loader, **options)

    def check_better(self, cur_epoch: int, cur_loss: float) -> bool:
        """Count the evaluations since the last better one, and stop when there were enough."""
        better: bool = super().check_better(cur_epoch, cur_loss)
        monitor = self._recorder.best.monitor
        if self._watched != (watched := monitor.watched):  # another value is looked at: it begins anew
            self._watched, self._reference, self._waited = watched, None, 0
        if is_better(cur_loss, self._reference, monitor.mode, by=self.min_delta):
            self._reference, self._waited = cur_loss, 0
        else:
            self._waited += 1
        if self._waited >= self.patience:
            what = "has never been finite" if self._reference is None else "has not got better"
            last = "" if is_finite(cur_loss) else f" (the last value: {cur_loss})"
            count = f"{self._waited} evaluation{'s' * (self._waited != 1)}"
            self.stop(f"{self.monitor} {what} in {count}{last}")
        return better

    def state_dict(self) -> dict[str, Any]:
        """The reference value, how long was waited, and what for."""
        own = {"reference": self._reference, "waited": self._waited, "watched": self._watched}
        return {**super().state_dict(), "EarlyStoppingAddon": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; after a trainer without this add-on, or by another `monitor`, wait anew."""
        super().load_state_dict(state)
        own, now = state.get("EarlyStoppingAddon", {}), self._recorder.best.monitor.watched
        known = own if [*own.get("watched", now)] == now else {}
        self._watched, self._reference, self._waited = now, known.get("reference"), known.get("waited", 0)
