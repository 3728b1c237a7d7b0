"""Evaluation: of one batch, of all validation sets in the middle of training, and inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .. import refusals
from ..data.plan import BatchPlan
from ..data.random_streams import generators_kept
from ..data.sample_ids import in_dataset_order
from ..data.window import Window
from ..interface import Face
from ..nested_values import map_nest, snapshots, to_cpu
from ..processes.agreement import Agreement
from ..records.gather import joined
from ..records.pooling import Sums, pooled, with_metrics
from ..records.recorder import Recorder, only_logs
from ..step.eval_context import evaluation
from ..step.placement import Placement
from ..warn import warn


class Evaluator:
    """Runs `test_step` where nothing is trained, and leaves model, modes and random streams as they were.

    Parameters
    ----------
    placement : Placement
    recorder : Recorder

    Attributes
    ----------
    watch : Agreement
        When the processes ask each other, in the middle of an evaluation, whether they are called away.
    """

    def __init__(self, placement: Placement, recorder: Recorder) -> None:
        self._place, self._recorder = placement, recorder
        self._ambiguous: frozenset[str] = frozenset()  # names that two metrics of named sets would have
        self.watch = Agreement(placement.processes, 0)
        self._unproven = True  # whether no batch of the present walk has shown what the step returns

    def plan(self, trainer: Face, loader: Any, epoch: int = 0) -> BatchPlan:
        """How this process walks over a loader that is evaluated."""
        return self._place.plan(trainer, loader, epoch, exceeds=self._go_beyond)

    def _go_beyond(self, batches: int, length: int) -> None:
        """Say that a loader gives more than its length."""
        words = refusals.beyond("valid_loader", batches, length)
        self._recorder.warn_once("length of valid_loader", f"{words}; {refusals.CORRECT_LENGTH}")

    @contextmanager
    def surroundings(self, trainer: Face, epoch: int) -> Iterator[None]:
        """Around a walk over a loader: evaluate inside."""
        self.watch, self._unproven = Agreement(self._place.processes, 0), True
        self._recorder.log_test.copies = only_logs(trainer)  # else others get the values, too, as they are now
        self._place.processes.same_buffers(trainer.model)  # one model is evaluated, and kept if it is the best
        with evaluation(trainer.model, self._place.device, trainer.seed, epoch):
            yield

    def evaluate(self, trainer: Face, window: Window) -> None:
        """Fill in the window's values; nothing of a stand-in."""
        if torch.is_grad_enabled():  # by itself: within an epoch, `evaluation` is around it already
            with self._alone(trainer):
                return self.evaluate(trainer, window)
        step = trainer.test_step
        values = (
            self._place.evaluate(step, window.micros[0].batch) if window.is_whole else self._tested(trainer, window)
        )
        if values is not None:
            refusals.check_test(values, "test_step", self._unproven)
            self._unproven = False
            window.values = dict(values) if self._recorder.log_test.copies else snapshots(values)
            if self._place.update.several is not None:
                window.values.pop("optimizer", None)  # of a step that is the training's, too

    @contextmanager
    def _alone(self, trainer: Face) -> Iterator[None]:
        """Around one batch that is evaluated outside of a walk."""
        self._unproven, self._recorder.log_test.copies = True, False
        with evaluation(trainer.model, self._place.device, trainer.seed, 0):
            yield

    def _tested(self, trainer: Face, window: Window) -> Any:
        """What `test_step` returned for this process's share; None when it has none.

        Then a stand-in is run only where the processes have to call the model equally often.
        """
        mine = window.here or not window.samples  # an empty batch is everybody's
        if not (mine or self._place.in_step):
            return None
        values = self._place.evaluate(trainer.test_step, window.micros[0].batch)
        return values if mine else None

    def validate(self, trainer: Face, sets: dict[str, Any], **kwargs: Any) -> bool:
        """Evaluate on every validation set, in the middle of training; return whether there was any sample."""
        recorder = self._recorder
        parts, found, recorder.call.tested_all = list[Sums](), dict[str, dict[str, float]](), True
        trainer.toggle("test")
        try:
            for name, loader in sets.items():
                trainer.run_epoch(loader, **kwargs)
                if recorder.batches:
                    parts.append(with_metrics(recorder.log_test.sums(), recorder.test_metrics))
                    found[name] = dict(recorder.test_metrics)
                    continue
                warn(
                    f"valid_loader {name or 'of this run'} gave no batch, so this validation decides nothing (the best"
                    " weights, the scheduler's rate); it is asked again next time"
                )
                recorder.call.tested_all = False
        finally:
            trainer.toggle("train")
        whole = pooled(parts)
        recorder.test_metrics.clear()
        recorder.test_metrics.update(whole | self._of_sets(found, whole))
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
            words = f"test_{name} would mean two things, so it is {others} that is of a set"
            self._recorder.warn_once(f"name {name}", words)
        return {named.get((name, key), key): value for name, metrics in found.items() for key, value in metrics.items()}

    def inference(self, trainer: Face, loader: Iterable[Any]) -> list[Any]:
        """See `Trainer.inference`, which is this."""
        refusals.check_loader(loader, "loader")
        refusals.check_steps(trainer, trains=False, tests=True)
        self._place.prepare(trainer)
        mode, outputs = trainer.mode, dict[int, Any]()
        trainer.toggle("test")
        try:
            with self.surroundings(trainer, 0), generators_kept(loader), self._recorder.own.silent():
                plan = self.plan(trainer, in_dataset_order(loader))
                for number, batch in enumerate(plan):
                    window = plan.window(self._place.send(batch))
                    if (values := self._tested(trainer, window)) is not None:
                        outputs[number] = map_nest(to_cpu, refusals.check_output(values))
        finally:
            trainer.toggle(mode)
        return self._whole(outputs)

    def _whole(self, outputs: dict[int, Any]) -> list[Any]:
        """Every process's outputs, in the batches' order."""
        everyone = self._place.processes.gather(outputs)
        numbers = sorted(set().union(*everyone))
        return [value for n in numbers for value in joined([part[n] for part in everyone if n in part])]
