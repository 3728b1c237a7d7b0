"""What each step of a run had, took and left, as marks that two runs can be compared by; and why they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checkpoint.errors import CheckpointError
from ..data.random_streams import streams_of
from ..interface import Face
from ..nested_values import fingerprint, is_scalar
from ..object_state import Root, State, states_of

Names = dict[str, str]
_UNTIMED = ("seconds", "saving")  # of a row of the history: these are another each time
_WORDS = {
    "restored weights": "{} as it was restored",
    "restored optimizer": "the optimizer's {} as it was restored",
    "batch": "the batch",
    "streams before": "{}'s random stream, as the step begins",
    "values": "{!r}, which the step returned",
    "streams": "{}'s random stream, as the step ends",
    "gradients": "the gradient of {}",
    "weights": "{}",
    "optimizer": "the optimizer's {}",
    "history": "the history's {}",
}
_LOST = "its state_dict() does not give that, or its load_state_dict() does not take it back"
_GENERAL = {
    "batch": "the data is no function of the samples' ids and of the global random streams",
    "restored weights": _LOST,
    "restored optimizer": _LOST,
}
_ADVICE = {
    "data": "make each sample a function of its id, and of the epoch that set_epoch(epoch) tells",
    "trainer": "return it in the trainer's state_dict(), and take it back in load_state_dict()",
    "model": "let the model's state_dict() have it: register_buffer() for a tensor, get_extra_state() and"
    " set_extra_state() for anything else",
    "optimizer": "keep it in the optimizer's state or param_groups",
    "scheduler": "let the scheduler's state_dict() have it",
}
_OWNERS = {
    "data": "the data",
    "trainer": "the step",
    "model": "the model",
    "optimizer": "the optimizer",
    "scheduler": "the scheduler",
}
_DRAW = "draw from python's, numpy's or torch's global streams instead, which are restored"


@dataclass
class Marks:
    """Of one batch: hashes by kind and name, in the order in which one thing follows from another."""

    step: int
    mode: str
    kinds: dict[str, Names] = field(default_factory=dict)
    shown: Names = field(default_factory=dict)


@dataclass
class Trace:
    """What a run has left to be compared.

    Attributes
    ----------
    began, last : int
        Optimizer steps done before it, and after it.
    after : list of Marks
        Of the batches behind the checkpoint.
    held : dict
        What the user's objects held when the first of them had been loaded.
    still : set of str
        Those of them that were then as they had been when the run began.
    rows : list of dict
        Of the history.
    ended, error : str or None
        Why it ended early; what it failed with.
    """

    began: int
    last: int = 0
    after: list[Marks] = field(default_factory=list)
    held: dict[str, State] = field(default_factory=dict)
    still: set[str] = field(default_factory=set)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Difference:
    """The first thing that differs.

    Attributes
    ----------
    step : int or None
    kind, words : str
        Which mark, and how to call it.
    error : str or None
        When the run could not go on at all.
    """

    step: int | None
    kind: str
    words: str
    error: str | None = None

    @property
    def general(self) -> str:
        """What can be said when nothing was found that explains it."""
        return _GENERAL.get(self.kind, "something that the step depends on is in no checkpoint")


class Tracer:
    """Wraps `run_batch` and `logging` of a trainer, and saves after some steps.

    Parameters
    ----------
    trainer : Trainer
    steps : int
        After how many of them to save.
    roots : dict of Root
        Where the user's objects are.
    save : callable or None
        Saves the run that is not interrupted; None in one that goes on.
    """

    def __init__(self, trainer: Face, steps: int, roots: Mapping[str, Root], save: Callable[[], Any] | None) -> None:
        self._trainer, self._roots, self._save = trainer, roots, save
        self._run_batch, self._logging = trainer.run_batch, trainer.logging
        began = trainer.progress_checker.get_step() - 1
        self._trace, self._saved_at, self._values = Trace(began), began + steps, dict[str, Any]()
        self._held = states_of(roots)
        self._names = {id(p): name for name, p in trainer.model.named_parameters()}

    def trace(self, run: Callable[[], Any]) -> Trace:
        """Run, and return what is to be compared; the error that a run which goes on fails with is part of it."""
        trace = self._trace
        try:
            run()
        except Exception as error:
            vars(error).pop("__notes__", None)  # about this trial's folder
            if self._save is not None and not isinstance(error, CheckpointError):
                raise
            trace.error = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        trace.last, trace.ended = self._trainer.progress_checker.get_step() - 1, self._trainer.stop_reason
        trace.rows = [{k: v for k, v in row.items() if k not in _UNTIMED} for row in self._trainer.history.rows]
        return trace

    def run_batch(self, batch: Any, **kwargs: Any) -> None:
        """What `Trainer.run_batch` does, and note it."""
        training, done = self._trainer.mode == "train", self._trainer.progress_checker.get_step() - 1
        marks = Marks(done + training, self._trainer.mode)
        noted = marks.step > self._saved_at
        if noted:
            self._note_before(marks, batch)
        self._run_batch(batch, **kwargs)
        if noted:
            self._note_after(marks)
        elif training and self._save is not None and marks.step == self._saved_at:
            self._save()

    def logging(self, step_dict: dict[str, Any]) -> None:
        """What `Trainer.logging` does; keep the values."""
        self._values = dict(step_dict)
        self._logging(step_dict)

    def _note_before(self, marks: Marks, batch: Any) -> None:
        first = marks.mode == "train" and not self._trace.held
        if first:
            marks.kinds |= {"restored weights": self._weights(), "restored optimizer": self._optimizer()}
            held = self._trace.held = states_of(self._roots)
            self._trace.still = {path for path, state in held.items() if state == self._held.get(path)}
        marks.kinds["batch"] = {"": _mark(batch)}
        if first:
            marks.kinds["streams before"] = self._streams()

    def _note_after(self, marks: Marks) -> None:
        marks.kinds["values"] = {key: _mark(value) for key, value in self._values.items()}
        marks.shown = {key: f"{float(value):.9g}" for key, value in self._values.items() if is_scalar(value)}
        marks.kinds["streams"] = self._streams()
        if marks.mode == "train":
            gradients = {n: p.grad for n, p in self._trainer.model.named_parameters() if p.grad is not None}
            marks.kinds["gradients"] = {name: _mark(gradient) for name, gradient in gradients.items()}
            marks.kinds |= {"weights": self._weights(), "optimizer": self._optimizer()}
        self._trace.after.append(marks)

    def _streams(self) -> Names:
        return {name: _mark(state) for name, state in streams_of(self._trainer.device).items()}

    def _weights(self) -> Names:
        model = self._trainer.model
        everything = {**dict(model.named_parameters()), **model.state_dict()}
        return {name: _mark(value) for name, value in everything.items()}

    def _optimizer(self) -> Names:
        """State and settings, ``lr`` among them."""
        marks, optimizer = Names(), self._trainer.optimizer
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                name = self._names.get(id(parameter), "a parameter of no module")
                for key, value in optimizer.state.get(parameter, {}).items():
                    marks[f"{key} of {name}"] = _mark(value)
            marks |= {f"{k} of group {number}": _mark(v) for k, v in group.items() if k != "params"}
        return marks


def _mark(nest: Any) -> str:
    return fingerprint(nest)


# ---------------------------------------------------------------------- the comparison


def first_difference(whole: Trace, resumed: Trace) -> Difference | None:
    """The first thing that differs between a run and one that went on from its checkpoint."""
    for one, other in zip(whole.after, resumed.after, strict=False):
        if (one.step, one.mode) != (other.step, other.mode):
            return Difference(min(one.step, other.step), "order", "whether it trains or evaluates")
        for kind, names in one.kinds.items():
            for name in dict.fromkeys((*names, *other.kinds.get(kind, {}))):
                if names.get(name) != other.kinds.get(kind, {}).get(name):
                    return Difference(one.step, kind, _in_words(one, other, kind, name))
    fewer = min(len(whole.after), len(resumed.after))
    if resumed.error is not None:
        step = whole.after[fewer].step if fewer < len(whole.after) else None
        return Difference(step, "batch" if "order" in resumed.error else "error", "it cannot go on", resumed.error)
    if len(whole.after) != len(resumed.after):
        ends = resumed.last if len(resumed.after) == fewer else whole.last
        return Difference(ends, "order", "which step is the last")
    return _other_rows(whole.rows, resumed.rows)


def _in_words(one: Marks, other: Marks, kind: str, name: str) -> str:
    words = _WORDS[kind].format(name)
    if kind == "values" and name in one.shown and name in other.shown:
        words += f" ({one.shown[name]} without an interruption, {other.shown[name]} with one)"
    return words + (" of an evaluation" if one.mode == "test" else "")


def _other_rows(whole: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> Difference | None:
    if len(whole) != len(resumed):
        return Difference(None, "history", f"the history has {len(whole)} rows, or {len(resumed)}")
    for one, other in zip(whole, resumed, strict=True):
        for name in dict.fromkeys((*one, *other)):
            if repr(one.get(name)) != repr(other.get(name)):  # so that NaN is equal to itself
                values = f"{name!r} ({one.get(name)} without an interruption, {other.get(name)} with one)"
                return Difference(one["step"], "history", _WORDS["history"].format(values))
    return None


def reason_for(found: Difference, whole: Trace, resumed: Trace) -> str | None:
    """Why two runs differ: what a user's object held, and did not get back."""
    suspects = list(_suspects(found, whole, resumed))
    if found.error is None and not suspects:
        return None
    reasons = [found.error] if found.error is not None else []
    if suspects:
        path, state = suspects[0]
        reasons.append(_reason(path, state, whole.held.get(path), resumed.held.get(path)))
        more = [f"`{other}`" for other, _ in suspects[1:4]]
        reasons += [f"not restored either: {', '.join(more)}"] if more else []
    return ";\n".join(reasons)


def _suspects(found: Difference, whole: Trace, resumed: Trace) -> Iterator[tuple[str, State]]:
    """What differs in the user's objects, that which explains most first."""
    there, here = whole.held, resumed.held or whole.held
    moved = {path: there.get(path) or here[path] for path in {**there, **here}
             if there.get(path) != here.get(path) and not _idle(path, whole)}  # fmt: skip
    of_data = {path: state for path, state in there.items() if state.kind == "data" and state.form == "generator"}
    if found.kind == "batch" and not any(state.kind == "data" for state in moved.values()):
        moved = of_data | moved  # of which workers have copies, that do not move here
    first = ("data",) if found.kind == "batch" else ("trainer", "model", "optimizer", "scheduler")
    forms = ("generator", "tensor", "value")
    yield from sorted(moved.items(), key=lambda each: (each[1].kind not in first, forms.index(each[1].form)))


def _idle(path: str, whole: Trace) -> bool:
    """Whether it is a generator that gave nothing: another process would have another one there, but not miss it."""
    return path in whole.still and whole.held[path].form == "generator"


def _reason(path: str, state: State, there: State | None, here: State | None) -> str:
    if state.form == "generator":
        return (
            f"{_OWNERS[state.kind]} draws from a generator of its own, `{path}`, which no checkpoint has; {_DRAW}, or"
            f" {_ADVICE[state.kind]}"
        )
    values = ["nothing" if each is None else each.shown for each in (there, here)]
    was = f" ({values[0]} without an interruption, {values[1]} with one)" if all(values) else ""
    return f"`{path}` was not restored{was}; {_ADVICE[state.kind]}"
