"""The trainer: what a user subclasses, and the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from torch import nn
from torch.optim import Optimizer

from . import hints, refusals
from .compose import RUNS, AddOnBase, compose, options_of, refuse_unknown
from .console.banner import banner, farewell
from .console.bar import make_bar
from .console.values import check_show
from .data.random_streams import draw_seed, streams_kept
from .data.window import Window
from .limits import Duration
from .loop.between_steps import between_steps, end_of_epoch, owes
from .loop.evaluator import Evaluator
from .loop.session import Session
from .methods import Methods
from .nested_values import snapshots
from .processes.device import Device, resolve_accumulation
from .processes.max_wait import check_wait
from .records.history import History
from .records.metrics import check_metrics
from .records.monitor import Monitor
from .records.recorder import Recorder
from .several_optimizers import as_one, schedulers_as_one
from .step.fixed_shards import check_shards, one_thread
from .step.placement import Placement

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T", bound="Trainer")
Loader = Iterable[Any]


class Trainer(Methods):
    """Trains a model from two methods that you write, `train_step` and `test_step`.

    Parameters
    ----------
    model : nn.Module or None
        Stays your own: inside the steps, ``self.model`` is this very object, on the device. None is an empty module,
        for a trainer that does not train.
    device : str, torch.device, a list of one, or None
        ``'cpu'``, ``'cuda'``, ``'cuda:1'``, ``'mps'``; None lets Accelerate choose.
    mode : {'train', 'test'}
        What `run` does with its loader.
    optimizer : Optimizer, dict of str to Optimizer, or list of Optimizer, optional
        Over the model's parameters; needed in mode 'train'. Several are stepped together; of a dict, a step may name
        the one that it is for: ``return {"loss": loss, "optimizer": "g"}``.
    scheduler : learning-rate scheduler, or dict of such ones, optional
        Over that optimizer, or by its name; stepped once an epoch. A ReduceLROnPlateau gets the validation's loss.
    log_bar : bool
        Show a banner, a bar (plain lines in a file) and a line an epoch, on standard error.
    show : list of str, optional
        The values that these show: ``['loss', 'test_acc']``. None shows all; more than ten get a line for each set.
    scheduler_step_on_batch : bool
        Step the scheduler once an optimizer step instead.
    gradient_clip : float
        Clip the gradients to this norm; 0 does not clip. The norm before is logged as ``grad_norm``.
    gradient_accumulation_steps : int, optional
        Cut each of the loader's batches into so many micro-batches. This saves memory and does not change the result.
        None takes the launch configuration's, else 1.
    mixed_precision : {'no', 'bf16', 'fp16', 'fp8'}, optional
        None takes the launch configuration's.
    seed : int, optional
        Makes a run repeatable to the bit. None draws one from torch's generator and reports it (`seed`). What is drawn
        before has to have a seed of its own: the model's weights, and a split, ``random_split(..., generator=...)``.
    monitor : str
        What tells the best weights: ``'loss'``, or another metric by its name, such as ``'acc'`` or ``'test_acc'``.
        The validation's value is taken, without a validation loader the training's.
    monitor_mode : {'min', 'max'}, optional
        Which direction of it is better. None infers it from the name, or from ``higher_is_better`` of its metric.
    on_nan : {'warn', 'stop'}
        What happens when a value that the step returned is not finite; 'stop' ends the run when it is the loss.
    metrics : dict of str to metric, optional
        Objects such as torchmetrics', updated with the ``"output"`` and ``"target"`` that the steps return, or with
        what is named: ``{"acc": (metric, "logits", "labels")}``, ``"output.boxes"`` for what is in a dict.
    split_batches : bool
        The loader's batch is the batch of one optimizer step, shared out over the processes. False: it is the batch of
        one process, as Accelerate means it.
    seeded_samples : bool, optional
        Draw each sample of a dataset with random streams from (seed, epoch, sample id), so that its augmentation is the
        same for any number of workers and processes. None does so when a seed was given.
    shards : int, optional
        Cut each batch into so many shards, whatever the number of processes, and sum their gradients in one fixed tree:
        every number of processes that divides them then trains the same bits, dropout included. On the CPU, each
        process then computes with one thread, because more of them change the bits.
    sync_batchnorm : bool
        Let BatchNorm take its statistics over all processes, on GPUs.
    max_wait : str, timedelta or None
        ``'10min'``: how long a process waits for the others, or for the workers of its loader, before the run ends with
        an error that names the one that has not come. Who that is, is told after 30 seconds. None waits for ever.
    kwargs_handlers : list, optional
        Accelerate's, such as ``DistributedDataParallelKwargs(find_unused_parameters=True)``.

    Attributes
    ----------
    log_train, log_test : EpochLog
        The values of the running (or last) epoch, a list a key, one value a batch.
    train_metrics, test_metrics : dict
        The epoch's means, and what `metric_on_epoch_end` added.
    history : History
        One row an epoch.
    accelerator : accelerate.Accelerator
        What runs below, for whoever needs it.

    Examples
    --------
    >>> class MyTrainer(Trainer):
    ...     def train_step(self, batch):
    ...         x, y = batch
    ...         return {"loss": nn.functional.cross_entropy(self.model(x), y)}
    ...     test_step = train_step
    >>> trainer = MyTrainer(model, device="cpu", optimizer=optimizer)
    >>> history = trainer.run(n_epoch=3, loader=loader, valid_loader=valid_loader)
    """

    def __init__(
        self,
        model: nn.Module | None,
        device: Device | Sequence[Device] | None = None,
        mode: str = "train",
        optimizer: Optimizer | Mapping[str, Optimizer] | Sequence[Optimizer] | None = None,
        scheduler: Any = None,
        *,
        log_bar: bool = True,
        show: Sequence[str] | None = None,
        scheduler_step_on_batch: bool = False,
        gradient_clip: float = 0.0,
        gradient_accumulation_steps: int | None = None,
        mixed_precision: str | None = None,
        seed: int | None = None,
        monitor: str = "loss",
        monitor_mode: str | None = None,
        on_nan: str = "warn",
        metrics: Mapping[str, Any] | None = None,
        split_batches: bool = True,
        seeded_samples: bool | None = None,
        shards: int | None = None,
        sync_batchnorm: bool = False,
        max_wait: str | timedelta | None = "30min",
        kwargs_handlers: Sequence[Any] | None = None,
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown(unknown, type(self).__name__, options_of(type(self)), RUNS)
        hints.check_reads(type(self))
        refusals.check_steps(self, trains=mode == "train", tests=False)
        without = model is None and optimizer is None  # then `run` refuses to train
        model = nn.Sequential() if model is None else model
        scheduler = schedulers_as_one(scheduler, optimizer := as_one(optimizer))
        refusals.check_parts(
            model, "test" if without and mode == "train" else mode, optimizer, scheduler, scheduler_step_on_batch
        )
        refusals.check_number("gradient_clip", gradient_clip, 0)
        self.model, self.mode, self.optimizer, self.scheduler = model, mode, optimizer, scheduler
        self.log_bar, self.show, self.on_nan = log_bar, check_show(show), on_nan
        self.scheduler_step_on_batch, self.gradient_clip = scheduler_step_on_batch, gradient_clip
        self.gradient_accumulation_steps = resolve_accumulation(gradient_accumulation_steps) if shards is None else 1
        self.seed_was_given = seed is not None
        self.seed = draw_seed() if seed is None else refusals.check_seed(seed)
        self.seeded_samples = self.seed_was_given if seeded_samples is None else seeded_samples
        self.metrics, routes = check_metrics(metrics)
        self.sync_batchnorm, self.max_wait = sync_batchnorm, check_wait(max_wait)
        self.shards = check_shards(shards, gradient_accumulation_steps, split_batches)
        self.split_batches, self.kwargs_handlers = split_batches, kwargs_handlers
        self.loader: Loader | None = None
        self.valid_loader: Loader | Mapping[str, Loader] | None = None
        self.batch_size = self.valid_batch_size = 0
        self._place = where = Placement(self, device, mixed_precision)
        parts = (Monitor(monitor, monitor_mode, self.metrics), on_nan, self.metrics, routes, self._keeps_lines)
        self._recorder = Recorder(*parts, where.processes, where.device)
        self._evaluator = Evaluator(self._place, self._recorder)
        self._session, self._companions = None, []
        self._place.prepare(self)
        self._made = True

    @classmethod
    def add_on(cls, *add_ons: type[AddOnBase]) -> type[Self]:
        """Return this class with add-ons on top, the last one outermost; the same stack is the same class.

        A TypeError names what is no add-on, is there twice, or comes before an add-on that it requires.
        """
        return compose(cls, *add_ons)

    # ------------------------------------------------------------------ the loop

    def run(
        self,
        n_epoch: int | str | None = None,
        loader: Loader | None = None,
        valid_loader: Loader | Mapping[str, Loader] | None = None,
        *,
        max_steps: int | str | None = None,
        max_time: str | timedelta | None = None,
        valid_every: int | str = "1ep",
        **kwargs: Any,
    ) -> History:
        """Train in mode 'train', evaluate in mode 'test'; a further call goes on from here.

        ::

            refuse what cannot go to its end
            for each epoch that is left:
                run_epoch(loader)
                run_epoch(valid_loader) in mode 'test', when it is due
                add a row to the history; check_better
                step the scheduler, unless it is stepped each batch
                end when stop() was called, or max_steps or max_time is reached

        Parameters
        ----------
        n_epoch : int or str
            How many epochs more; ``'3ep'``, ``'500st'`` and ``'10min'`` are accepted, too.
        loader : DataLoader or iterable of batches
            Its batch is the batch of one optimizer step.
        valid_loader : loader, or dict of named loaders, optional
            Named sets are reported as ``test_NAME_loss``, and all of them together as ``test_loss``.
        max_steps : int or str, optional
            End after so many optimizer steps (``500`` or ``'500st'``) of this call.
        max_time : str or timedelta, optional
            End after the step during which that time is over, ``'10min'`` say.
        valid_every : int or str
            ``'2ep'``, ``'500st'``, ``'10min'``; the end of the run is always validated.
        **kwargs
            Go on to overrides of `run_epoch` and `run_batch` that take them.

        Returns
        -------
        History
            Of all calls together.
        """
        refusals.check_run_options(type(self), kwargs)
        self.loader, self.valid_loader = loader, valid_loader
        kept = self._place.holds(self)  # it has parameters of its own, and was checked before
        parts = (self.model, "test" if kept else self.mode, None if kept else self.optimizer)
        refusals.check_parts(*parts, None if kept else self.scheduler, self.scheduler_step_on_batch)
        limits = refusals.read_limits(n_epoch, max_steps, max_time, self.mode)
        with self._within(limits, Duration.parse(valid_every, "valid_every")) as session:
            session.check(loader)
            notes = make_bar(session.shows)
            notes.write(banner(session) if session.shows else "")
            guard = self._place.guard.run((loader, *session.valid_sets.values()))
            # Each epoch sets streams of its own; the caller's go on where they were.
            with guard, streams_kept(self.device), one_thread(self.shards is not None and not self._place.moves):
                for epoch in session.epochs():
                    self.run_epoch(loader, **kwargs)
                    notes.write(end_of_epoch(session, epoch, **kwargs))
                    if session.call.stop_reason is not None:
                        break
            notes.write(farewell(session))
        return self.history

    @contextmanager
    def _within(self, limits: list[Duration], valid_every: Duration) -> Iterator[Session]:
        """Inside, a call of `run` goes on."""
        before, parts = self._session, (self._place, self._recorder, self._evaluator, self._companions)
        try:
            self._session = session = Session(self, *parts, limits, valid_every)
            yield session
        finally:
            self._session, self._recorder.batch_of, self._place.guard.plans = before, "", {}
            if before is not None:
                before.take_over()

    @contextmanager
    def _alone(self) -> Iterator[Session]:
        """Inside, one epoch is walked outside of `run`."""
        call, evaluates = self._recorder.call, self.mode == "test"
        try:
            with self._within([Duration(1, "ep")], Duration(1, "ep")) as session:
                session.begin()
                yield session
        finally:
            if evaluates:  # how the last call of `run` has ended can still be asked
                self._recorder.call = call

    def run_epoch(self, loader: Any, **kwargs: Any) -> None:
        """Walk `loader` once: train on it in mode 'train', evaluate in mode 'test'. Then take the epoch's metrics."""
        present: AbstractContextManager[Session] = nullcontext(self._session) if self._session else self._alone()
        recorder, placement, training = self._recorder, self._place, self.mode == "train"
        with present as session:
            recorder.open_epoch(self.mode)
            title = session.title if training else f"{session.title} test"
            bar = make_bar(session.shows).open(title, session.plan(loader).batches, self.print_log)
            epoch = recorder.counters.get_epoch()
            plan = session.open_epoch(loader, bar) if training else session.plan(loader, epoch)
            session.plans[self.mode] = plan
            with bar, nullcontext() if training else self._evaluator.surroundings(self, epoch):
                if training:
                    session.begin_training(loader)
                over = training and owes(session, bar, **kwargs)
                for batch in () if over else recorder.usage.waiting(plan) if training else plan:
                    self.run_batch(batch, **kwargs)
                    bar.advance(recorder.samples, now := perf_counter())
                    if not training:
                        if session.can_leave:
                            session.called_away(bar.done)
                    elif between_steps(session, bar, now, **kwargs):
                        break
            recorder.batches, recorder.speed = bar.done, bar.speed
            if training:
                placement.compare(self, recorder.warn_once)
                placement.processes.same_buffers(self.model)
            recorder.close_epoch(self, bar.done)

    def run_batch(self, batch: Any, **kwargs: Any) -> None:
        """Take one batch of the plan: place it, train or evaluate on it, log what the step returned.

        It is the batch as the loader gave it; of several processes, each gets its share.
        """
        recorder, training = self._recorder, self.mode == "train"
        recorder.batch_of = self.mode
        window = self._place.window(self, batch)
        if training:
            if self.model.training is not self._place.modes.root:  # put into eval() meanwhile, to sample from it, say
                self._place.modes.train(self.model)
            self.optimize(window)
            if self.scheduler_step_on_batch and window.stepped and self.scheduler is not None:
                self.scheduler.step()
        else:
            self._evaluator.evaluate(self, window)
        recorder.samples = window.samples
        if window.values:
            window.values.setdefault("num_items", window.here)
            self.logging(window.values)
            if (measures := recorder.measures[self.mode]).metrics:
                measures.update(window.values, f"{self.mode}_step")
        else:  # the batch had fewer samples than there are processes
            recorder.of(self.mode)[0].skip()
        if training:
            recorder.counters.step += 1
        recorder.batch_of = ""

    def optimize(self, window: Window) -> None:
        """Forward and backward over the window's micro-batches, clip, step; fills in ``window.values``."""
        placement, update, whole = self._place, self._place.update, window.is_whole
        results: list[dict[str, Any]] = []
        result: dict[str, Any] = {}
        update.zero_grad()
        for micro in update.micros(window):
            result = placement.forward(self.train_step, micro.batch)
            loss = refusals.check_step(result, "train_step", placement.unproven)
            if placement.unproven:
                placement.unproven = refusals.check_named(result, update.several is not None)
            update.backward(loss, None if whole else window.share(result.get("num_items"), micro))
            if micro.samples or not window.samples:
                results.append(snapshots(result))
        if not whole and (factor := window.correction()) is not None:
            update.rescale(factor)
        if update.several is not None:
            update.choose(placement.named(window, results or [result]), results)
        norm = update.clip() if update.max_norm else None
        window.stepped = update.step()
        window.values = results[0] if whole else window.merged(results)
        if norm is not None and results:
            window.values.setdefault(update.norm_name, norm)

    # ------------------------------------------------------------------ what the user writes, and inference

    @refusals.to_be_written
    def train_step(self, batch: Any) -> dict[str, Any]:
        """Return ``{"loss": loss, ...}`` for a batch; write this.

        It runs inside the prepared model, so autocast, compile and gradient synchronisation cover all of it.

        Parameters
        ----------
        batch : Any
            What the loader gave, on the device; a part of it on several processes, and under accumulation.

        Returns
        -------
        dict
            ``"loss"``: the mean over the batch, a tensor of one element with its graph. ``"num_items"``, optional: of
            how many items it is the mean, when these are not the samples (tokens, say). Whatever else you want to see:
            numbers are averaged over the epoch, other values are kept until its end.
        """
        raise refusals.missing_step(self, "train_step")

    @refusals.to_be_written
    def test_step(self, batch: Any) -> dict[str, Any]:
        """Return ``{"loss": loss, ...}`` for a batch, without gradients; ``"output"`` is what `inference` returns.

        Needed as soon as there is something to evaluate on; ``test_step = train_step`` when both are the same.
        """
        raise refusals.missing_step(self, "test_step")

    if not TYPE_CHECKING:  # a type checker would take any attribute for known

        def __getattr__(self, name: str) -> Any:
            hints.missing(self, name)
