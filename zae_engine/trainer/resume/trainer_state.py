"""A trainer's whole state as nests of plain values and tensors, and back. The trainer is passed as Any."""

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
from ...checkpoint.names import own_name, own_names
from ...checkpoint.sharded import SHARDED, VALUES, load_sharded, take_shards
from ...checkpoint.weights import WeightsError, load_weights, own_state
from ..journal.settings import IN_EVAL
from ..processes.group import is_sharded
from ..step.trained import Trained, put_trained
from ..warn import warn
from .writer import BEST, MODEL, STATE, Contents, own_stem

Nest = dict[str, Any]


def whole_of(trainer: Any, contents: Contents) -> None:
    """Put what this process has of the trainer's state into `contents`; refuse several models."""
    trainer._compare_processes()
    spread, engine = is_sharded(trainer.model), has_engine(trainer)
    contents.documents[own_stem(trainer._processes.index)] = trainer._own_part()
    if engine:
        contents.together = partial(save_engine, engine=trainer._prepared)
    elif spread:
        contents.sharded = take_shards(trainer.model, _optimizer(trainer))
    if not trainer._processes.first:
        return
    model = {} if spread else own_state(trainer.model)
    if not spread:
        contents.weights[MODEL] = {k: v for k, v in model.items() if isinstance(v, Tensor)}
    contents.documents[STATE] = {
        "seed": trainer.seed,
        "position": trainer._position(),
        "modes": sorted(set(map(own_name, trainer._modes.chosen(trainer.model)))),
        "stack": trainer.state_dict(),
        "kinds": _kinds(trainer),
        "optimizer": None if spread or engine else _optimizer(trainer).state_dict(),
        "trained": Trained(trainer.model, trainer.optimizer).plain(),
        "trained_before": trainer._border.plain() if trainer._open and trainer._border else None,
        "trained_first": trainer._trained_first,
        "scheduler": _scheduler_state(trainer.scheduler),
        "scaler": trainer.accelerator.scaler.state_dict() if trainer.accelerator.scaler is not None else None,
        "extra": {k: v for k, v in model.items() if not isinstance(v, Tensor)},
    }


def check_savable(trainer: Any) -> None:
    """Refuse, before anything is trained, what no checkpoint can hold of the add-ons, the user and the scheduler."""
    pack(trainer.state_dict(), "stack")
    pack(_scheduler_state(trainer.scheduler), "scheduler")


def best_extra(trainer: Any) -> Nest:
    """What the best weights have that is no tensor: modules' extra states."""
    best = trainer.weight_buffer["weight"]
    return {k: v for k, v in best[-1].items() if not isinstance(v, Tensor)} if best else {}


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


def put_whole(trainer: Any, checkpoint: Checkpoint) -> Nest:
    """Give the trainer the state of a checkpoint that was verified; return the document of process 0.

    Raises
    ------
    CheckpointError
        When it is another model's, optimizer's or scheduler's. It may have been put in partly then.
    """
    state = _document(checkpoint, STATE)
    with fitting(checkpoint):
        _put_parts(trainer, checkpoint, state, final=not _comes_again(trainer, state))
        # A script that has chosen others from the start has its way.
        same = checkpoint.manifest.get("settings", {}).get(IN_EVAL) == trainer._settings.get(IN_EVAL)
        if trainer.mode == "train" and "modes" in state and same:
            still = {own_name(name) for name in state["modes"]}
            names = [name for name, _ in trainer.model.named_modules() if own_name(name) in still]
            trainer._modes.choose(trainer.model, names)
        _put_place(trainer, checkpoint, state)
        _put_border(trainer, checkpoint, state)
    return state


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


def put_passed(trainer: Any, checkpoint: Checkpoint) -> Nest:
    """Give the trainer what can be looked at of a checkpoint of a later call of `run`, which will be loaded then.

    Those are the weights, if the model is the same by now, the history and the best weights. The script may yet change
    what is trained, and how, so the optimizer and the scheduler stay as they are.
    """
    state = _document(checkpoint, STATE)
    if has_engine(trainer) or is_sharded(trainer.model):
        return put_whole(trainer, checkpoint)  # which cannot be put in partly
    with fitting(checkpoint):
        with suppress(WeightsError):
            weights = read_tensors(listed(checkpoint, MODEL)) | state["extra"]
            load_weights(trainer.model, weights, source=f"{str(checkpoint.path)!r}")
        _put_place(trainer, checkpoint, state)
    return state


def _put_place(trainer: Any, checkpoint: Checkpoint, state: Nest) -> None:
    """Counters, the add-ons' states, the history, and where the run is."""
    own, streams = _parts_for(trainer._processes, checkpoint)
    trainer._decide(seed=state["seed"])
    _put_stack(trainer, state["stack"])
    trainer._go_to(state["position"], own, streams)


def _put_border(trainer: Any, checkpoint: Checkpoint, state: Nest) -> None:
    """In the middle of an epoch: be as it was before the epoch, for what the user's `run_epoch` does at its begin.

    That is done a second time then; afterwards everything is put in again.
    """
    if not _comes_again(trainer, state):
        return
    before = state["trained_before"]
    if before != state["trained"] and not has_engine(trainer):
        _put_trained(trainer, state, before)
    trainer._midway.again = partial(_put_again, trainer, checkpoint)


def _comes_again(trainer: Any, state: Nest) -> bool:
    """Whether the user's `run_epoch` will do, before the epoch goes on, what it has done before it began."""
    before = state.get("trained_before")
    if not state["position"]["midway"] or before is None or trainer.optimizer is None:
        return False
    return before != state["trained"] or any("run_epoch" in vars(c) and _is_users(c) for c in type(trainer).__mro__)


def _put_again(trainer: Any, checkpoint: Checkpoint) -> None:
    """Put in what was put in before, read anew, since what holds it may have changed it meanwhile."""
    with fitting(checkpoint):
        _put_parts(trainer, checkpoint, _document(checkpoint, STATE))


def _put_trained(trainer: Any, state: Nest, trained: Nest) -> None:
    options = state["optimizer"] and state["optimizer"]["param_groups"]
    firsts = (state["trained_first"], trainer._trained_first)
    put_trained(trainer.model, _optimizer(trainer), trained, *firsts, options)


def _is_users(cls: type) -> bool:
    return not cls.__module__.startswith("zae_engine.")


def _put_parts(trainer: Any, checkpoint: Checkpoint, state: Nest, final: bool = True) -> None:
    """Put in what is trained, and what trains it; unless it is final, what does not fit is left out."""
    if trainer.optimizer is not None and "trained" in state and not has_engine(trainer):
        _put_trained(trainer, state, state["trained"])
    if has_engine(trainer):
        load_engine(checkpoint.path, trainer._prepared)
    elif f"{SHARDED}/{VALUES}" in checkpoint.files:
        load_sharded(checkpoint.path, trainer.model, _optimizer(trainer))
    elif is_sharded(trainer.model) or state["optimizer"] is None:
        raise CheckpointError(
            "its parameters were not spread over processes in the same way (FSDP2, DeepSpeed); go on as it was begun,"
            " or take its weights only: trainer.apply_weights(path)"
        )
    else:
        weights = read_tensors(listed(checkpoint, MODEL)) | state["extra"]
        load_weights(trainer.model, weights, source=f"{str(checkpoint.path)!r}")
        if trainer.optimizer is None:  # to be evaluated only
            return
        if _fits(trainer, state, "optimizer", final):
            _put_optimizer(_optimizer(trainer), state["optimizer"], final)
    for name, part in (("scheduler", trainer.scheduler), ("scaler", trainer.accelerator.scaler)):
        if not _fits(trainer, state, name, final):
            continue
        if (part is None) != (state[name] is None):
            had = "none" if state[name] is None else "one"
            raise CheckpointError(f"the {name}: {had} in the checkpoint, {'none' if part is None else 'one'} now")
        if part is not None:
            part.load_state_dict(state[name])


def _kinds(trainer: Any) -> dict[str, str | None]:
    """The classes of what trains the model."""
    parts = {"optimizer": _optimizer(trainer), "scheduler": trainer.scheduler}
    return {name: None if part is None else type(part).__name__ for name, part in parts.items()}


def _fits(trainer: Any, state: Nest, name: str, final: bool) -> bool:
    """Whether the state is of the same class; refuse another one's, unless the user's `run_epoch` may exchange it."""
    then, now = (kinds.get(name) for kinds in (state.get("kinds", {}), _kinds(trainer)))
    if then == now or (final and None in (then, now)):  # that there is none is told elsewhere
        return True
    if final:
        raise CheckpointError(
            f"the {name}: {then} in the checkpoint, {now} now. Make the trainer with one of class {then}, and call"
            " load_state('last') and run(...) without resume=; it is exchanged for one of another class between two"
            " calls of run(..., resume='auto')"
        )
    return False


def has_engine(trainer: Any) -> bool:
    """Whether DeepSpeed trains, which saves and loads by itself."""
    return bool(trainer.accelerator.distributed_type == DistributedType.DEEPSPEED)


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


def _parts_for(processes: Any, checkpoint: Checkpoint) -> tuple[list[Nest], Nest | None]:
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


def _put_stack(trainer: Any, saved: Nest) -> None:
    """Counters and the add-ons' states; one that was not there then keeps its own."""
    own = trainer.state_dict()
    for one, other, words in ((own, saved, "is new: it begins afresh"), (saved, own, "is not there now: left out")):
        for name in one.keys() - other.keys():
            warn(f"the state of {name}, compared with the checkpoint, {words}")
    trainer.load_state_dict({**own, **saved})


def _optimizer(trainer: Any) -> Any:
    return getattr(trainer._prepared_optimizer, "optimizer", trainer._prepared_optimizer)


def _put_optimizer(optimizer: Any, state: Nest, final: bool) -> None:
    """Load a state to the bit: torch's own loading gives moments the parameters' dtype."""
    then = [(len(g["params"]), sorted(g.keys() - {"params"})) for g in state["param_groups"]]
    now = [(len(g["params"]), sorted(g.keys() - {"params"})) for g in optimizer.param_groups]
    if then != now:
        if not final:
            return
        raise CheckpointError(f"the optimizer's groups: {then} in the checkpoint, {now} now")
    optimizer.load_state_dict(state)
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in state["state"].get(number, {}).items():
            loaded = optimizer.state[parameter].get(name)
            if isinstance(value, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(loaded.device)


def _scheduler_state(scheduler: Any) -> Any:
    if scheduler is None:
        return None
    if not hasattr(scheduler, "state_dict"):
        raise CheckpointError(
            f"the scheduler, a {type(scheduler).__name__}, has no state_dict(), so a run cannot go on with it; take one"
            " of torch.optim.lr_scheduler, or give it state_dict() and load_state_dict()"
        )
    return scheduler.state_dict()
