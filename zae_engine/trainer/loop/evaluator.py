"""The part of the trainer that evaluates: validation sets, metrics, inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from .. import checks
from ..data.layout import Start
from ..data.plan import BatchPlan
from ..data.random_streams import generators_kept, set_streams
from ..data.sampling import in_dataset_order
from ..data.window import Window
from ..limits import Budget, Interval
from ..nests import map_nest, place, snapshot, to_cpu
from ..processes.agreement import Agreement
from ..records.epoch_log import Sums, pooled, with_metrics
from ..records.gather import joined
from ..step.eval_context import evaluation
from ..step.placement import Placing
from ..verify.step import Verification, verify
from ..warn import warn

Loader = Iterable[Any]
Step = Callable[[Any], dict[str, Any]]


class Evaluating(Placing):
    """What `Trainer` needs to evaluate; it adds the loop."""

    test_step: Step
    _resumable: bool
    _validation: Interval
    _batches: int
    _ambiguous: frozenset[str] = frozenset()  # names that two metrics of named sets would have
    _budget: Budget
    scheduler: Any
    scheduler_step_on_batch: bool

    def _plan(self, loader: Any, epoch: int = 0, start: Start | None = None) -> BatchPlan:
        """How this process walks over `loader` in the present mode."""
        start = start or Start()
        training = self.mode == "train"
        layout = self._layout if training else replace(self._layout, micro_batches=1, shards=None)
        purpose = ("train", epoch) if training else ("test",)
        others = self._processes.index > 0  # process 0 goes on with the stream that drew the order, as one process does
        if others:
            start.began = partial(set_streams, self.device, self.seed, *purpose, "process", self._processes.index)
        return BatchPlan(
            loader,
            layout,
            self._processes,
            seeded=self.seeded_samples,
            key="/".join(map(str, (self.seed, *purpose))),
            start=start,
            exceeds=self._go_beyond if epoch or not training else None,
            keeps_ids=self._resumable and training,
        )

    def _go_beyond(self, batches: int, length: int) -> None:
        """Say that a loader gives more than its length; refuse a schedule that ends before the run for that."""
        training = self.mode == "train"
        name = "the loader" if training else "valid_loader"
        words = f"{name} gives more batches than its length says: len() is {length}, and this is number {batches}"
        if training and self.scheduler_step_on_batch and self.scheduler is not None:
            left = self._budget.steps_left(batches, self.progress_checker.get_step() - 1)
            checks.check_lasts_beyond(self.scheduler, left, words)
        self._warn_once(f"length of {name}", f"{words}; correct its __len__, which bars and schedules count by")

    def _surroundings(self, training: bool, epoch: int) -> AbstractContextManager[None]:
        if not training:
            self._watch = Agreement(self._processes, 0)
            self._processes.same_buffers(self.model)  # one model is evaluated, and kept if it is the best
        if training:
            self._modes.train(self.model)
            for sentence in self._modes.news(self.model) if self._processes.first else ():
                warn(sentence)
            set_streams(self.device, self.seed, "train", epoch)
        return nullcontext() if training else evaluation(self.model, self.device, self.seed, epoch)

    def _evaluate(self, window: Window) -> None:
        """Fill in the window's values; nothing of a stand-in."""
        single = torch.is_grad_enabled()  # within an epoch, `evaluation` is around it already
        with evaluation(self.model, self.device, self.seed, 0) if single else nullcontext():
            values = self._tested(window)
        if values is not None:
            checks.check_test(values, "test_step")
            window.values = {key: snapshot(value) for key, value in values.items()}

    def _tested(self, window: Window) -> Any:
        """What `test_step` returned for this process's share; None when it has none.

        Then a stand-in is run only where the processes have to call the model equally often.
        """
        mine = window.here or not window.samples  # an empty batch is everybody's
        values = self._evaluator(self.test_step, window.micros[0].batch) if mine or self._in_step else None
        return values if mine else None

    def _validate(self, **kwargs: Any) -> bool:
        """Evaluate on every validation set, in the middle of training; return whether there was any sample."""
        parts, found, self._tested_all = list[Sums](), dict[str, dict[str, float]](), True
        self.toggle("test")
        try:
            for name, loader in self._valid_sets.items():
                self.run_epoch(loader, **kwargs)
                if not self._batches:
                    warn(
                        f"valid_loader {name or 'of this run'} gave no batch, so this validation decides nothing (the"
                        " best weights, the scheduler's rate); it is asked again next time"
                    )
                    self._tested_all = False
                else:
                    parts.append(with_metrics(self.log_test.sums(), self.test_metrics))
                    found[name] = dict(self.test_metrics)
        finally:
            self.toggle("train")
        whole = pooled(parts)
        self.test_metrics.clear()
        self.test_metrics.update(whole | self._of_sets(found, whole))
        self._validation.restart()
        return bool(parts)

    def _of_sets(self, found: dict[str, dict[str, float]], whole: dict[str, float]) -> dict[str, float]:
        """The metrics of each set by ``SET_metric``; by ``SET:metric`` where the other would mean two things.

        A metric ``b_loss`` of a set ``a`` and the loss of a set ``a_b`` would have one name, as would the metric
        ``b_loss`` of all sets together and the loss of a set ``b``.
        """
        places = [(name, key) for name, metrics in found.items() if name for key in metrics]
        counts = Counter([*whole, *(f"{name}_{key}" for name, key in places)])
        self._ambiguous |= {name for name, count in counts.items() if count > 1}  # and stays so in this trainer
        named = {each: "_".join(each) for each in places}
        named |= {each: ":".join(each) for each, name in named.items() if name in self._ambiguous}
        for name in sorted(self._ambiguous & {"_".join(each) for each in places}):
            others = " and ".join(f"test_{named[each]}" for each in places if "_".join(each) == name)
            self._warn_once(f"name {name}", f"test_{name} would mean two things, so it is {others} that is of a set")
        return {named.get((name, key), key): value for name, metrics in found.items() for key, value in metrics.items()}

    def inference(self, loader: Loader) -> list[Any]:
        """Return what `test_step` returns as ``"output"``, one value a batch, on the CPU, in the dataset's order.

        Logs, metrics, mode and random streams stay as they were. A loader that shuffles is walked in order. Of several
        processes all call it, each computes its share, and all get the whole; a batch whose parts cannot be joined
        (padded to other lengths, say) is given as its parts, one after the other.
        """
        checks.check_loader(loader, "loader")
        checks.check_steps(self, trains=False, tests=True)
        self._prepare()
        mode, outputs = self.mode, dict[int, Any]()
        self.toggle("test")
        try:
            with self._surroundings(False, 0), generators_kept(loader), self._own.silent():
                plan = self._plan(in_dataset_order(loader))
                for number, batch in enumerate(plan):
                    if (values := self._tested(plan.window(place(batch, self.device)))) is not None:
                        outputs[number] = map_nest(to_cpu, checks.check_output(values))
        finally:
            self.toggle(mode)
        return self._whole(outputs)

    def verify(self, loader: Loader, steps: int = 3) -> Verification:
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
        return verify(self, loader, steps)

    def _whole(self, outputs: dict[int, Any]) -> list[Any]:
        everyone = self._processes.gather(outputs)
        numbers = sorted(set().union(*everyone))
        return [value for n in numbers for value in joined([part[n] for part in everyone if n in part])]
