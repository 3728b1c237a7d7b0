"""What is called on a trainer beside `run`: each in a few lines, over the parts that do it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import nn

from . import options, refusals
from .interface import Face
from .loop.companion import Companion
from .loop.evaluator import Evaluator
from .loop.session import Session
from .options import fixed, of_part, setting
from .records.counters import ProgressChecker
from .records.epoch_log import EpochLog
from .records.history import History
from .records.recorder import Recorder
from .step.placement import Placement

if TYPE_CHECKING:
    from .verify.step import Verification

Path = str | PathLike[str]


class Methods(Face):
    """The names of a trainer, and the parts behind them; `Trainer` adds the loop."""

    model: nn.Module = setting(options.module, "_place.awaits_epoch")
    optimizer: Any = setting(options.optimizer, "_place.awaits_epoch")
    scheduler: Any = setting(options.scheduler)
    mode: str = setting(options.choice("mode", *refusals.MODES))
    gradient_clip: float = setting(options.clip, "_place.clip_to")
    gradient_accumulation_steps: int = setting(options.micro_batches, "_place.lay_out")
    seed: int = setting(options.seed, "_place.reseed")
    on_nan: str = setting(options.choice("on_nan", "warn", "stop"), "_recorder.watch")
    show: tuple[str, ...] | None = setting(options.shown)
    metrics: dict[str, Any] = setting("_recorder.measure_by")
    device: Any = fixed()
    mixed_precision: str = fixed()
    split_batches: bool = fixed()
    seeded_samples: bool = fixed()
    shards: int | None = fixed()
    sync_batchnorm: bool = fixed()
    kwargs_handlers: Any = fixed()
    max_wait: float | None = fixed()

    accelerator: Any = of_part("_place.accelerator", settable=False)
    is_main_process: bool = of_part("_place.processes.first", settable=False)
    log_train: EpochLog = of_part("_recorder.log_train")
    log_test: EpochLog = of_part("_recorder.log_test")
    train_metrics: dict[str, float] = of_part("_recorder.train_metrics")
    test_metrics: dict[str, float] = of_part("_recorder.test_metrics")
    history: History = of_part("_recorder.history")
    progress_checker: ProgressChecker = of_part("_recorder.counters")
    monitor: str = of_part("_recorder.best.name")
    monitor_mode: str | None = of_part("_recorder.best.mode")
    loss_buffer: float = of_part("_recorder.best.value")
    weight_buffer: dict[str, list[Any]] = of_part("_recorder.best.weights")
    stop_reason: str | None = of_part("_recorder.stop_reason", settable=False)

    _place: Placement
    _recorder: Recorder
    _evaluator: Evaluator
    _session: Session | None  # the call of `run` that is running
    _companions: list[Companion]  # of add-ons
    _keeps_lines = False  # whether an add-on writes each step's values down
    _made = False  # whether the constructor is done

    def toggle(self, mode: str | None = None) -> None:
        """Switch to `mode`, 'train' or 'test'; None switches to the other one."""
        if mode is None:
            mode = "test" if self.mode == "train" else "train"
        refusals.check_choice("mode", mode, refusals.MODES)
        self.mode = mode

    def turn(self, *names: str) -> str:
        """The name whose turn it is in this optimizer step, as they take turns: ``self.turn("d", "d", "g")``.

        It depends on the number of the step alone, so it is the same on all processes and after a resume.
        """
        if not names:
            raise ValueError("turn() got no names; write those that take turns: self.turn('d', 'd', 'g')")
        return names[(self._recorder.counters.get_step() - 1) % len(names)]

    # ------------------------------------------------------------------ values

    def logging(self, step_dict: dict[str, Any]) -> None:
        """Take the values of one batch: detached, still on their device, with ``"num_items"`` as their weight."""
        recorder = self._recorder
        log = recorder.log_train if self.mode == "train" else recorder.log_test
        log.add(step_dict, step_dict.get("num_items", 1), recorder.counters.step)

    logging.only_logs = True  # type: ignore[attr-defined]  # an override may keep what it gets

    def log(self, values: Mapping[str, Any] | str, value: Any = None, **options: Any) -> None:
        """Give values of your own to every logger, from any method, and between two calls of `run`.

        They belong to the optimizer step that is being made, or else to the last one that is done, and go the way of
        the trainer's own values, so that they are there once after a crash, too. Without an add-on that has a folder or
        a logger nothing happens; of several processes, the first one's are kept. Nothing that is wrong with a value
        ends the training: it is left out, and this is said once.

        Parameters
        ----------
        values : mapping
            Numbers, texts, and pictures: arrays, images of PIL, figures of matplotlib, paths. Or the name of one
            `value`, as in Lightning, whose further options do nothing.

        Notes
        -----
        Of several values of one name at one step the last one holds. Within `train_step` and `test_step`, which see a
        part of a batch or of a validation at a time, they are averaged; what the steps return is weighted, shown and
        of all processes.

        Examples
        --------
        >>> trainer.log({"mine": 1.0, "weights": model[0].weight, "note": "warmed up"})
        """
        recorder, session = self._recorder, self._session
        given = recorder.own.named(values, value, options)
        if not self._place.processes.first:
            return
        step = recorder.counters.get_step() - (recorder.batch_of != "train")
        epoch = recorder.counters.get_epoch() - (session is None or session.opened is None)
        shared = type(self).test_step is type(self).train_step
        recorder.own.take(given, step, epoch, recorder.batch_of, shared)
        for companion in () if recorder.batch_of else self._companions:
            companion.value_came()

    def log_reset(self, epoch_end: bool = False) -> None:
        """Forget the running epoch's values; with `epoch_end`, the metrics, too."""
        for mode in refusals.MODES:
            log, metrics = self._recorder.of(mode)
            log.clear()
            if epoch_end:
                metrics.clear()

    def get_loss_history(self, mode: str = "train") -> list[float]:
        """The loss of every step so far, in mode 'train' or 'test'; of more than two million the last ones."""
        refusals.check_choice("mode", mode, refusals.MODES)
        log = self._recorder.of(mode)[0]
        log.drain()
        return log.losses.values.tolist()

    def print_log(self, cur_batch: int, num_batch: Any) -> dict[str, str]:
        """What the bar shows: position, learning rate and the epoch's means so far."""
        return self._recorder.shown(self, f"{cur_batch}/{num_batch}")

    @refusals.to_be_written
    def metric_on_epoch_end(self) -> dict[str, float]:
        """Return further metrics of the epoch that ends, from its logs; override this.

        `mode` tells which epoch it is; ``self.log_train`` and ``self.log_test`` hold its values.

        Examples
        --------
        >>> def metric_on_epoch_end(self):
        ...     log = self.log_train if self.mode == "train" else self.log_test
        ...     hits = torch.cat(log["output"]).argmax(1) == torch.cat(log["target"])
        ...     return {"acc": hits.float().mean().item()}
        """
        return {}

    # ------------------------------------------------------------------ the best weights, and the end

    def check_better(self, cur_epoch: int, cur_loss: float) -> bool:
        """Whether `cur_loss` (the monitored value) is the best so far; if so, keep a copy of the weights.

        What the model's weights are at this moment is what is kept and saved, be they those that an add-on swaps in.

        Parameters
        ----------
        cur_epoch : int
            Counted from 0.
        cur_loss : float
            NaN and infinities are never better, nor is an equal value.
        """
        best = self._recorder.best
        if better := best.is_beaten_by(cur_loss):
            best.keep(self.model, cur_epoch, cur_loss)
        return better

    def stop(self, reason: str) -> None:
        """End the run after the current step, with its epoch closed as usual.

        Several processes end together, within about a second, whichever of them it was called on.

        Parameters
        ----------
        reason : str
            Shown at the end of the run.
        """
        self._recorder.stop(reason)

    def save_model(self, filename: Path) -> None:
        """Write the model's weights, whole or not at all. Of several processes, the first one writes.

        A sharded model (FSDP2) is put together for it, so all processes have to call this.

        Parameters
        ----------
        filename : path-like
            ``.safetensors`` or ``.safetensor`` loads with ``safetensors.torch.load_model(model, filename)``, any other
            ending with ``model.load_state_dict(torch.load(filename, weights_only=True))``.
        """
        self._place.save_model(self.model, filename)

    def apply_weights(self, filename: Path | None = None, strict: bool = True) -> None:
        """Put weights into the model: the best of this run, or a file's. No pickle is executed.

        Of several processes, all call it.

        Parameters
        ----------
        filename : path-like, optional
            What `save_model` or ``torch.save(model.state_dict(), …)`` wrote; None takes the best weights.
        strict : bool
            Refuse missing and unexpected keys.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        WeightsError
            When there are no best weights yet, the file is damaged, is another model's, or holds more than tensors.
        """
        if filename is not None:
            self._place.processes.wait()  # process 0 may have yet to write it
        self._recorder.best.apply(self.model, filename, strict, self.history.rows)

    def state_dict(self) -> dict[str, Any]:
        """Counters and the best value; an add-on adds its own under its class name."""
        return {"Trainer": self._recorder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. A best value by another `monitor` than this trainer's is left out."""
        self._recorder.load_state_dict(state["Trainer"])

    # ------------------------------------------------------------------ without training

    def inference(self, loader: Iterable[Any]) -> list[Any]:
        """Return what `test_step` returns as ``"output"``, one value a batch, on the CPU, in the dataset's order.

        Logs, metrics, mode and random streams stay as they were. A loader that shuffles is walked in order. Of several
        processes all call it, each computes its share, and all get the whole; a batch whose parts cannot be joined
        (padded to other lengths, say) is given as its parts, one after the other.
        """
        return self._evaluator.inference(self, loader)

    def verify(self, loader: Iterable[Any], steps: int = 3) -> Verification:
        """Replay a few batches whole and in pieces, and say whether `train_step` gives the same gradients.

        What is the same in pieces trains the same model on any number of processes and micro-batches. It runs on a copy
        of the model on the CPU, in float64, so that rounding and real differences are told apart; in float32 when the
        step cannot run in float64. The trainer, its model, optimizer, logs, random streams and the loader's generators
        stay as they are. Of several processes, each verifies for itself.

        Parameters
        ----------
        loader : DataLoader or iterable of batches
            Its first batches are taken; a sampler that counts by itself goes on from there.
        steps : int
            How many batches.

        Returns
        -------
        Verification
            True when the step is invariant, else with the first parameter whose gradient differs, and the cause.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            When the batches cannot be cut, the model cannot be copied, or the step does not run on the CPU.

        Notes
        -----
        What is compared are the parameters and buffers of `self.model`; whatever else has parameters to train has to be
        its submodule. Other modules and tensors that the step reaches by `self` are copied along; a model that it calls
        by another name is not.

        Examples
        --------
        >>> assert trainer.verify(loader), trainer.verify(loader).cause
        """
        from .verify.step import verify

        return verify(self, self._place.modes, {"_recorder": self._recorder.unheard()}, loader, steps)
