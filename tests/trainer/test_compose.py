"""Stacking add-ons onto a trainer class."""

import multiprocessing
import pickle
import re

import pytest
import torch
from torch import nn

from zae_engine import AddOnBase, Trainer
from zae_engine.trainer.addons import EarlyStoppingAddon
from zae_engine.trainer.compose import add_ons_of, compose, options_of, refuse_unknown


class MyTrainer(Trainer):
    def train_step(self, batch):
        return {"loss": self.model(batch).mean()}

    test_step = train_step


class Inner(AddOnBase):
    def __init__(self, *args, depth=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.depth = depth

    def check_better(self, cur_epoch, cur_loss):
        return ["inner", super().check_better(cur_epoch, cur_loss)]


class Outer(AddOnBase):
    def check_better(self, cur_epoch, cur_loss):
        return ["outer", super().check_better(cur_epoch, cur_loss)]


class Needs(AddOnBase):
    requires = (Inner,)


class NeedsToo(AddOnBase):
    requires = (Inner, Outer)


class InnerKind(Inner):
    """Stands for `Inner` where that is required."""


class Old(AddOnBase):
    """As add-ons were written for 0.7.6."""

    @classmethod
    def apply(cls, base_cls):
        class Wrapped(base_cls):
            def __init__(self, *args, shout="!", **kwargs):
                super().__init__(*args, **kwargs)
                self.shout = shout

            def check_better(self, cur_epoch, cur_loss):
                return ["old", super().check_better(cur_epoch, cur_loss)]

        return Wrapped


class OldNeeds(Old):
    """Such an add-on, which requires another."""

    requires = (Inner,)


class Seeding(AddOnBase):
    """Has an option that the trainer has, too."""

    def __init__(self, *args, seed=1, **kwargs):
        super().__init__(*args, seed=seed, **kwargs)


class Written(Outer, Inner, MyTrainer):
    """A stack written as a class statement."""


def make(kind, **options):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return kind(model, "cpu", optimizer=optimizer, log_bar=False, **options)


def names(cls):
    return [c.__name__ for c in cls.__mro__]


# ---------------------------------------------------------------------- the stack


def test_the_last_add_on_is_outermost():
    stack = MyTrainer.add_on(Inner, Outer)
    trainers = [name for name in names(stack) if name in ("Inner", "Outer", "MyTrainer", "Trainer")]
    assert trainers == ["Outer", "Inner", "MyTrainer", "Trainer"]
    assert make(stack).check_better(0, 1.0) == ["outer", ["inner", True]]
    assert add_ons_of(stack) == (Inner, Outer)


def test_the_name_tells_the_stack():
    stack = MyTrainer.add_on(Inner, Outer)
    assert stack.__name__ == stack.__qualname__ == "MyTrainer+Inner+Outer"
    assert stack.__module__ == __name__


def test_the_same_stack_is_the_same_class():
    assert MyTrainer.add_on(Inner, Outer) is MyTrainer.add_on(Inner, Outer)
    assert MyTrainer.add_on(Inner).add_on(Outer) is MyTrainer.add_on(Inner, Outer)
    assert MyTrainer.add_on(Outer, Inner) is not MyTrainer.add_on(Inner, Outer)
    assert MyTrainer.add_on() is MyTrainer


def test_stacks_of_two_trainers_are_two_classes():
    class Other(MyTrainer):
        pass

    assert Other.add_on(Inner) is not MyTrainer.add_on(Inner)
    assert issubclass(Other.add_on(Inner), Other)
    assert not issubclass(MyTrainer.add_on(Inner), Other)


def test_options_of_add_ons_reach_them():
    trainer = make(MyTrainer.add_on(Inner, EarlyStoppingAddon), depth=7, patience=2)
    assert (trainer.depth, trainer.patience) == (7, 2)
    assert make(Written, depth=3).depth == 3


def test_a_class_statement_stacks_as_well():
    assert make(Written).check_better(0, 1.0) == ["outer", ["inner", True]]
    assert add_ons_of(Written) == (Inner, Outer)


# ---------------------------------------------------------------------- pickling


@pytest.mark.parametrize("add_ons", [(Inner,), (Inner, Outer), (Old,), (Old, Inner), (Inner, Old)], ids=str)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_stack_is_pickled_as_the_same_class(add_ons, protocol):
    stack = MyTrainer.add_on(*add_ons)
    assert pickle.loads(pickle.dumps(stack, protocol)) is stack


def test_other_classes_are_pickled_by_their_names():
    for cls in (MyTrainer, Trainer, Inner, AddOnBase, Written):
        assert pickle.loads(pickle.dumps(cls)) is cls


def described(cls):
    """What a spawned process makes of a class that it was sent."""
    return cls.__name__, cls is MyTrainer.add_on(Inner, Outer), cls


@pytest.mark.usefixtures("starts_processes")
def test_a_stack_goes_to_a_spawned_process_and_back():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        name, same, back = pool.apply(described, (MyTrainer.add_on(Inner, Outer),))
        old = pool.apply(described, (MyTrainer.add_on(Old),))
    assert (name, same) == ("MyTrainer+Inner+Outer", True)
    assert back is MyTrainer.add_on(Inner, Outer)
    assert old == ("Wrapped", False, MyTrainer.add_on(Old))


# ---------------------------------------------------------------------- add-ons as 0.7.6 had them


def test_an_add_on_with_its_own_apply_is_stacked_as_it_is():
    trainer = make(MyTrainer.add_on(Old, Outer), shout="?")
    assert trainer.check_better(0, 1.0) == ["outer", ["old", True]]
    assert trainer.shout == "?"
    assert MyTrainer.add_on(Old) is MyTrainer.add_on(Old)
    assert add_ons_of(type(trainer)) == (Old, Outer)


def test_an_add_on_with_its_own_apply_may_require_others():
    assert make(MyTrainer.add_on(Inner, OldNeeds)).check_better(0, 1.0) == ["old", ["inner", True]]
    with pytest.raises(TypeError, match="OldNeeds in Wrapped requires Inner, which is not there"):
        MyTrainer.add_on(OldNeeds)


def test_an_add_on_with_its_own_apply_is_not_stacked_twice():
    with pytest.raises(TypeError, match=r"Old is in Wrapped already; name each add-on once"):
        MyTrainer.add_on(Old, Old)


# ---------------------------------------------------------------------- what is refused


def test_a_repeated_add_on_is_refused():
    with pytest.raises(TypeError, match=r"Inner is in MyTrainer\+Inner\+Outer already; name each add-on once"):
        MyTrainer.add_on(Inner, Outer, Inner)
    with pytest.raises(TypeError, match="Inner is in Written already"):
        Written.add_on(Inner)


@pytest.mark.parametrize("add_ons", [(Needs,), (Needs, Inner), (Outer, Needs)], ids=str)
def test_an_add_on_without_what_it_requires_before_it_is_refused(add_ons):
    with pytest.raises(
        TypeError, match=r"Needs in .* requires Inner, which is not there; write add_on\(Inner, Needs\)"
    ):
        MyTrainer.add_on(*add_ons)


def test_an_add_on_after_what_it_requires_is_accepted():
    assert MyTrainer.add_on(Inner, Needs).__name__ == "MyTrainer+Inner+Needs"
    assert MyTrainer.add_on(Inner, Outer, NeedsToo)
    assert MyTrainer.add_on(InnerKind, Needs)
    with pytest.raises(TypeError, match=r"NeedsToo in .* requires Outer, which is not there"):
        MyTrainer.add_on(Inner, NeedsToo)


def test_a_refused_stack_leaves_nothing_behind():
    with pytest.raises(TypeError, match="requires Inner"):
        MyTrainer.add_on(Needs)
    with pytest.raises(TypeError, match="requires Inner"):
        MyTrainer.add_on(Needs)
    assert add_ons_of(MyTrainer) == ()


@pytest.mark.parametrize(
    ("thing", "named"),
    [(nn.Linear, "Linear"), (3, "3"), ("Inner", "'Inner'"), (None, "None"), (MyTrainer, "MyTrainer")],
)
def test_what_is_no_add_on_is_refused(thing, named):
    with pytest.raises(TypeError, match=rf"{re.escape(named)} is not an add-on; add_on\(\) takes classes"):
        MyTrainer.add_on(thing)


def test_an_instance_of_an_add_on_is_refused():
    with pytest.raises(TypeError, match=r"Outer is an add-on, and no trainer by itself"):
        MyTrainer.add_on(Outer())


def test_an_add_on_behind_the_trainer_is_refused_at_the_class_statement():
    message = (
        r"in Wrong, Inner stands behind MyTrainer and would never be called; write class Wrong\(Inner, MyTrainer\)"
    )
    with pytest.raises(TypeError, match=message):

        class Wrong(MyTrainer, Inner):
            pass


def test_a_class_statement_in_the_wrong_order_is_refused():
    message = r"Needs in Wrong requires Inner, which comes after it; write add_on\(Inner, Needs\)"
    with pytest.raises(TypeError, match=message):

        class Wrong(Inner, Needs, MyTrainer):
            pass


def test_a_trainer_that_is_stacked_may_be_refined():
    class Refined(MyTrainer.add_on(Inner)):
        def check_better(self, cur_epoch, cur_loss):
            return ["refined", super().check_better(cur_epoch, cur_loss)]

    assert make(Refined.add_on(Outer)).check_better(0, 1.0) == ["outer", ["refined", ["inner", True]]]
    with pytest.raises(TypeError, match="Inner is in Refined already"):
        Refined.add_on(Inner)


# ---------------------------------------------------------------------- options


def test_options_are_told_with_their_owners():
    options = options_of(MyTrainer.add_on(EarlyStoppingAddon, Inner))
    assert options["patience"] == "EarlyStoppingAddon"
    assert options["depth"] == "Inner"
    assert options["gradient_clip"] == "Trainer"
    assert options.keys().isdisjoint({"self", "args", "kwargs", "unknown"})


def test_an_option_that_two_classes_have_is_the_outer_ones():
    assert options_of(MyTrainer)["seed"] == "Trainer"
    assert options_of(MyTrainer.add_on(Seeding))["seed"] == "Seeding"
    assert make(MyTrainer.add_on(Seeding)).seed == 1


def test_an_unknown_option_is_refused_with_the_near_miss():
    with pytest.raises(TypeError) as refused:
        make(MyTrainer.add_on(EarlyStoppingAddon), patiense=3)
    message = "MyTrainer+EarlyStoppingAddon has no option 'patiense'; did you mean 'patience' (of EarlyStoppingAddon)?"
    assert str(refused.value) == message


def test_an_option_that_is_near_none_is_refused_by_naming_those_there_are():
    with pytest.raises(TypeError, match=r"MyTrainer has no option 'colour'; there are .*, gradient_clip, .*, seed"):
        make(MyTrainer, colour=3)


def test_options_are_refused_only_when_there_are_any_left():
    refuse_unknown([], "X", {"a": "X"})
    with pytest.raises(TypeError, match="X has no option 'zzz'; there are a, b"):
        refuse_unknown(["zzz"], "X", {"b": "X", "a": "Y"})


def test_compose_is_what_add_on_does():
    assert compose(MyTrainer, Inner, Outer) is MyTrainer.add_on(Inner, Outer)
