"""The two loggers of 0.7.6, with their names and settings; both may be in one stack."""

from __future__ import annotations

from typing import Any

from .loggers import LoggerAddon


class WandBLoggerAddon(LoggerAddon):
    """Logs to Weights & Biases; offline, with a notice, where there is no key or no network. It never asks.

    ``web_logger={"wandb": {...}}`` takes the settings of ``wandb.init``. Without any, the project is WANDB_PROJECT or
    the run's name. See `LoggerAddon` for what all loggers have in common.

    Examples
    --------
    >>> Logged = MyTrainer.add_on(StateManagerAddon, WandBLoggerAddon)
    >>> trainer = Logged(model, optimizer=optimizer, save_path="runs/first", web_logger={"wandb": {"tags": ["a"]}})
    """

    logger = "wandb"
    opens = "init_wandb"

    def init_wandb(self, params: dict[str, Any]) -> Any:
        """Open the run with these arguments of ``wandb.init``, and return it; override this to change them."""
        import wandb

        return wandb.init(**params)


class NeptuneLoggerAddon(LoggerAddon):
    """Logs to Neptune's client: offline unless a server of your own is named, since the hosted service has ended.

    ``web_logger={"neptune": {...}}`` takes ``project_name`` and ``api_tkn`` as in 0.7.6, or the settings of
    ``neptune.init_run``. ``zae logs export`` brings a run elsewhere.
    """

    logger = "neptune"
    opens = "init_neptune"

    def init_neptune(self, params: dict[str, Any]) -> Any:
        """Open the run with these arguments of ``neptune.init_run``, and return it; override this to change them."""
        import neptune

        return neptune.init_run(**params)
