"""A trainer's whole state as nests of plain values and tensors, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor

from ...checkpoint.codec import pack
from ...checkpoint.deepspeed import load_engine, save_engine
from ...checkpoint.documents import SUFFIXES, read_document, read_tensors
from ...checkpoint.errors import CheckpointError
from ...checkpoint.folder import Checkpoint
from ...checkpoint.parameter_names import own_name, own_names
from ...checkpoint.sharded import SHARDED, VALUES, load_sharded, take_shards
from ...checkpoint.weights import WeightsError, load_weights, own_state
from ..interface import Face, decide
from ..journal.settings import IN_EVAL
from ..loop.open_epoch import Loaded, Open
from ..processes.group import Processes, is_sharded
from ..records.best_weights import BestWeights
from ..records.recorder import Recorder
from ..step.placement import Placement
from ..step.trained_parameters import Trained, put_trained
from ..warn import warn
from .checkpoint_writer import BEST, MODEL, STATE, Contents, own_stem
from .position import go_to, own_part, position_of

Nest = dict[str, Any]


class TrainerState:
    """Takes the whole state of a trainer, and puts one in.

    Parameters
    ----------
    trainer : Trainer
    placement, recorder
        Its parts.
    """

    def __init__(self, trainer: Face, placement: Placement, recorder: Recorder) -> None:
        self.trainer, self.place, self.recorder = trainer, placement, recorder

    # ------------------------------------------------------------------ out of the trainer

    def check_savable(self) -> None:
        """Refuse, before anything is trained, what no checkpoint can hold of add-ons, the user and the scheduler."""
        pack(self.trainer.state_dict(), "stack")
        pack(_scheduler_state(self.trainer.scheduler), "scheduler")

    def put_into(self, contents: Contents, opened: Open | None, border: Trained | None) -> None:
        """Put what this process has into a checkpoint's contents; refuse several models.

        Parameters
        ----------
        contents : Contents
        opened : Open or None
            The epoch that is running.
        border : Trained or None
            What was trained before it.
        """
        trainer, place, recorder = self.trainer, self.place, self.recorder
        place.compare(trainer, recorder.warn_once)
        spread, engine = is_sharded(trainer.model), self.has_engine
        contents.documents[own_stem(place.processes.index)] = own_part(trainer, recorder, opened, place.processes)
        if engine:
            contents.together = partial(save_engine, engine=place.prepared)
        elif spread:
            contents.sharded = take_shards(trainer.model, place.own_optimizer)
        if not place.processes.first:
            return
        model = {} if spread else own_state(trainer.model)
        if not spread:
            contents.weights[MODEL] = {k: v for k, v in model.items() if isinstance(v, Tensor)}
        scaler = place.accelerator.scaler
        contents.documents[STATE] = {
            "seed": trainer.seed,
            "position": position_of(trainer, recorder, opened),
            "modes": sorted(set(map(own_name, place.modes.chosen(trainer.model)))),
            "stack": trainer.state_dict(),
            "kinds": self._kinds(),
            "optimizer": None if spread or engine else place.own_optimizer.state_dict(),
            "trained": Trained(trainer.model, trainer.optimizer).plain(),
            "trained_before": border.plain() if opened and border else None,
            "trained_first": place.trained_first,
            "scheduler": _scheduler_state(trainer.scheduler),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "extra": {k: v for k, v in model.items() if not isinstance(v, Tensor)},
            "best_extra": best_extra(self.recorder.best),
        }

    def _kinds(self) -> dict[str, str | None]:
        """The classes of what trains the model."""
        parts = {"optimizer": self.place.own_optimizer, "scheduler": self.trainer.scheduler}
        return {name: None if part is None else type(part).__name__ for name, part in parts.items()}

    @property
    def has_engine(self) -> bool:
        """Whether DeepSpeed trains, which saves and loads by itself."""
        return bool(self.place.accelerator.distributed_type == DistributedType.DEEPSPEED)

    # ------------------------------------------------------------------ into the trainer

    def put(self, checkpoint: Checkpoint, settings: Nest) -> tuple[Nest, Loaded]:
        """Give the trainer the state of a checkpoint that was verified.

        Parameters
        ----------
        checkpoint : Checkpoint
        settings : dict
            The trainer's, to be compared with those of then.

        Returns
        -------
        The document of process 0, and what the next run goes on from.

        Raises
        ------
        CheckpointError
            When it is another model's, optimizer's or scheduler's. It may have been put in partly then.
        """
        trainer, state = self.trainer, _document(checkpoint, STATE)
        with fitting(checkpoint):
            again, misfits = self._comes_again(state), self._put_parts(checkpoint, state)
            if misfits and not again:
                raise CheckpointError(misfits[0])
            # A script that has chosen others from the start has its way.
            same = checkpoint.manifest.get("settings", {}).get(IN_EVAL) == settings.get(IN_EVAL)
            if trainer.mode == "train" and "modes" in state and same:
                still = {own_name(name) for name in state["modes"]}
                names = [name for name, _ in trainer.model.named_modules() if own_name(name) in still]
                self.place.modes.choose(trainer.model, names)
            loaded = self._put_place(checkpoint, state)
            if again and loaded.midway is not None:
                if state["trained_before"] != state["trained"] and not self.has_engine:
                    self._put_trained(state, state["trained_before"])
                loaded.midway.again = partial(self._put_again, checkpoint)
        return state, loaded

    def put_passed(self, checkpoint: Checkpoint, settings: Nest) -> tuple[Nest, Loaded]:
        """Give the trainer what can be looked at of a checkpoint of a later call of `run`, which will be loaded then.

        Those are the weights, if the model is the same by now, the history and the best weights. The script may yet
        change what is trained, and how, so the optimizer and the scheduler stay as they are.
        """
        state = _document(checkpoint, STATE)
        if self.has_engine or is_sharded(self.trainer.model):
            return self.put(checkpoint, settings)  # which cannot be put in partly
        with fitting(checkpoint):
            with suppress(WeightsError):
                self._put_weights(checkpoint, state)
            return state, self._put_place(checkpoint, state)

    def _put_weights(self, checkpoint: Checkpoint, state: Nest) -> None:
        weights = read_tensors(listed(checkpoint, MODEL)) | state["extra"]
        load_weights(self.trainer.model, weights, source=f"{str(checkpoint.path)!r}")

    def _put_place(self, checkpoint: Checkpoint, state: Nest) -> Loaded:
        """Counters, the add-ons' states, the history, and where the run is."""
        parts, streams = _parts_for(self.place.processes, checkpoint)
        decide(self.trainer, seed=state["seed"])
        self._put_stack(state["stack"])
        return go_to(self.recorder, state["position"], parts, streams)

    def _put_stack(self, saved: Nest) -> None:
        """Counters and the add-ons' states; one that was not there then keeps its own."""
        own = self.trainer.state_dict()
        for one, other, words in ((own, saved, "is new: it begins afresh"), (saved, own, "is not there now: left out")):
            for name in one.keys() - other.keys():
                warn(f"the state of {name}, compared with the checkpoint, {words}")
        self.trainer.load_state_dict({**own, **saved})

    def _comes_again(self, state: Nest) -> bool:
        """Whether the user's `run_epoch` will do, before the epoch goes on, what it has done before it began.

        In the middle of an epoch the trainer gets what was there before the epoch, for that to be done a second time;
        afterwards everything is put in again.
        """
        before = state.get("trained_before")
        if not state["position"]["midway"] or before is None or self.trainer.optimizer is None:
            return False
        overrides = any("run_epoch" in vars(c) and _is_users(c) for c in type(self.trainer).__mro__)
        return overrides or bool(before != state["trained"])

    def _put_again(self, checkpoint: Checkpoint) -> None:
        """Put in what was put in before, read anew, since what holds it may have changed it meanwhile."""
        with fitting(checkpoint):
            if misfits := self._put_parts(checkpoint, _document(checkpoint, STATE)):
                raise CheckpointError(misfits[0])

    def _put_trained(self, state: Nest, trained: Nest) -> None:
        options = state["optimizer"] and state["optimizer"]["param_groups"]
        firsts = (state["trained_first"], self.place.trained_first)
        put_trained(self.trainer.model, self.place.own_optimizer, trained, *firsts, options)

    def _put_parts(self, checkpoint: Checkpoint, state: Nest) -> list[str]:
        """Put in what is trained, and what trains it; return in words what did not fit, and was left out."""
        trainer, optimizer = self.trainer, self.place.own_optimizer
        if trainer.optimizer is not None and "trained" in state and not self.has_engine:
            self._put_trained(state, state["trained"])
        misfits: list[str | None] = []
        if self.has_engine:
            load_engine(checkpoint.path, self.place.prepared)
        elif f"{SHARDED}/{VALUES}" in checkpoint.files:
            load_sharded(checkpoint.path, trainer.model, optimizer)
        elif is_sharded(trainer.model) or state["optimizer"] is None:
            raise CheckpointError(
                "its parameters were not spread over processes in the same way (FSDP2, DeepSpeed); go on as it was"
                " begun, or take its weights only: trainer.apply_weights(path)"
            )
        else:
            self._put_weights(checkpoint, state)
            if trainer.optimizer is None:  # to be evaluated only
                return []
            misfits.append(self._other_kind(state, "optimizer") or _put_optimizer(optimizer, state["optimizer"]))
        misfits.append(self._other_kind(state, "scheduler") or _put_part("scheduler", trainer.scheduler, state))
        misfits.append(_put_part("scaler", self.place.accelerator.scaler, state))
        return [misfit for misfit in misfits if misfit]

    def _other_kind(self, state: Nest, name: str) -> str | None:
        """What to say when the state is of another class; that there is none is told elsewhere."""
        then, now = (kinds.get(name) for kinds in (state.get("kinds", {}), self._kinds()))
        if then == now or None in (then, now):
            return None
        return (
            f"the {name}: {then} in the checkpoint, {now} now. Make the trainer with one of class {then}, and call"
            " load_state('last') and run(...) without resume=; it is exchanged for one of another class between two"
            " calls of run(..., resume='auto')"
        )


def best_extra(best: BestWeights) -> Nest:
    """What the best weights have that is no tensor: modules' extra states."""
    held = best.weights["weight"]
    return {k: v for k, v in held[-1].items() if not isinstance(v, Tensor)} if held else {}


def _is_users(cls: type) -> bool:
    return not cls.__module__.startswith("zae_engine.")


def _put_part(name: str, part: Any, state: Nest) -> str | None:
    """Load a scheduler's or a scaler's state; return what to say when one of the two is not there."""
    if (part is None) != (state[name] is None):
        had = "none" if state[name] is None else "one"
        return f"the {name}: {had} in the checkpoint, {'none' if part is None else 'one'} now"
    if part is not None:
        part.load_state_dict(state[name])
    return None


def _put_optimizer(optimizer: Any, state: Nest) -> str | None:
    """Load a state to the bit: torch's own loading gives moments the parameters' dtype."""
    then = [(len(g["params"]), sorted(g.keys() - {"params"})) for g in state["param_groups"]]
    now = [(len(g["params"]), sorted(g.keys() - {"params"})) for g in optimizer.param_groups]
    if then != now:
        return f"the optimizer's groups: {then} in the checkpoint, {now} now"
    optimizer.load_state_dict(state)
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in state["state"].get(number, {}).items():
            loaded = optimizer.state[parameter].get(name)
            if isinstance(value, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(loaded.device)
    return None


@contextmanager
def fitting(checkpoint: Checkpoint) -> Iterator[None]:
    """Around what is done with a checkpoint's state: whatever is not in it as it should be is said in words."""
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{str(checkpoint.path)!r} does not fit this trainer: {reason}") from error


def with_twins(model: Any, weights: Nest) -> Nest:
    """Weights from a file that has tied ones once, with all of the model's keys, as they were before."""
    if is_sharded(model):
        return weights
    own, first, weights = own_state(model), dict[object, str](), own_names(weights)
    for name, tensor in own.items():
        if name not in weights:
            weights = weights | {name: weights[first[_memory(tensor)]].clone()}
        elif isinstance(tensor, Tensor):
            first.setdefault(_memory(tensor), name)
    return {name: weights[name] for name in own}


def _memory(tensor: Tensor) -> object:
    dense = str(tensor.layout) == "torch.strided"
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if dense else id(tensor)


def listed(checkpoint: Checkpoint, stem: str) -> Path:
    """A file of tensors of a checkpoint, in whichever format; one that its manifest lists, and so was verified."""
    names = [name for suffix in SUFFIXES if (name := f"{stem}{suffix}") in checkpoint.files]
    return checkpoint.file(names[0] if names else f"{stem}{SUFFIXES[0]}")


def best_of(checkpoint: Checkpoint) -> Path:
    """The file of the best weights in a checkpoint that has them: its own, or the model's where they are the same."""
    return listed(checkpoint, BEST if any(f"{BEST}{suffix}" in checkpoint.files for suffix in SUFFIXES) else MODEL)


def _document(checkpoint: Checkpoint, stem: str) -> Nest:
    checkpoint.file(f"{stem}.json")  # refuses one that is not listed
    document: Nest = read_document(checkpoint.path, stem)
    return document


def _parts_for(processes: Processes, checkpoint: Checkpoint) -> tuple[list[Nest], Nest | None]:
    """What of the processes' own parts this one goes on with, and its random streams."""
    count, index = checkpoint.processes or 1, processes.index
    mine = _document(checkpoint, own_stem(index)) if index < count else None
    if count == processes.count:
        parts = [mine]
    elif processes.first:
        parts = [_document(checkpoint, own_stem(i)) for i in range(count)]
    else:
        parts = []
    return [part for part in parts if part], mine.get("streams") if mine else None


def _scheduler_state(scheduler: Any) -> Any:
    if scheduler is None:
        return None
    if not hasattr(scheduler, "state_dict"):
        raise CheckpointError(
            f"the scheduler, a {type(scheduler).__name__}, has no state_dict(), so a run cannot go on with it; take one"
            " of torch.optim.lr_scheduler, or give it state_dict() and load_state_dict()"
        )
    return scheduler.state_dict()
