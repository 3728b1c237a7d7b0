"""Durations, the limits of a run, and schedulers."""

import itertools
import math
import re
import time
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from zae_engine.trainer.limits import Budget, Duration, Interval, Pace, read_interval, refuse_short, step_scheduler

# ---------------------------------------------------------------------- Duration


@pytest.mark.parametrize(
    ("value", "count", "unit"),
    [
        ("3ep", 3, "ep"),
        (" 3 EP ", 3, "ep"),
        ("2.0ep", 2, "ep"),
        ("500st", 500, "st"),
        ("90s", 90, "s"),
        ("90sec", 90, "s"),
        ("10min", 600, "s"),
        ("2h", 7200, "s"),
        ("1.5h", 5400, "s"),
        ("1d", 86400, "s"),
        (7, 7, "ep"),
        (timedelta(minutes=2), 120, "s"),
        (Duration(4, "st"), 4, "st"),
    ],
    ids=str,
)
def test_a_duration_is_read(value, count, unit):
    assert Duration.parse(value, "n_epoch") == Duration(count, unit)


@pytest.mark.parametrize(
    "value",
    [
        *("3", "3 epochs", "ep", "", "-1ep", "0ep", "0st", "0s", "1.5ep", "0.5st", "1e3st", "3ep5st", "10m"),
        *(0, -1, True, 2.5, None, timedelta(0), timedelta(seconds=-1), Duration(0, "s"), Duration(1.5, "ep"), [3]),
    ],
    ids=repr,
)
def test_what_is_no_duration_is_refused(value):
    message = (
        f"n_epoch={value!r} is not a duration; write '3ep' (epochs), '500st' (optimizer steps) or a time such as '90s',"
        " '10min', '2h', or a whole number of epochs"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        Duration.parse(value, "n_epoch")


def test_a_bare_number_counts_what_the_option_says():
    assert Duration.parse(5, "max_steps", bare="st") == Duration(5, "st")
    with pytest.raises(ValueError, match=r"max_steps=0 is not a duration; .*, or a whole number of steps$"):
        Duration.parse(0, "max_steps", bare="st")
    with pytest.raises(ValueError, match=r"max_time=5 is not a duration; .* '2h'$"):
        Duration.parse(5, "max_time", bare=None)


# ---------------------------------------------------------------------- Budget


def budget(*limits, epoch=0, step=0):
    return Budget([Duration.parse(limit, "limit") for limit in limits], epoch, step)


def test_epochs_go_on_from_those_that_are_done():
    assert list(budget(3).epochs()) == [0, 1, 2]
    assert list(budget("2ep", epoch=5).epochs()) == [5, 6]
    assert list(budget(4, 2).epochs()) == [0, 1]
    assert list(itertools.islice(budget("9st").epochs(), 4)) == [0, 1, 2, 3]


def test_the_smallest_limit_in_steps_ends_the_run():
    limited = budget("10ep", "5st", "8st", step=1000)
    assert limited.spent(1004) is None
    assert limited.spent(1005) == "5 steps done"
    assert budget("1500st").spent(1500) == "1,500 steps done"
    assert budget("2ep").spent(10**9) is None


def test_the_deadline_ends_the_run():
    limited = budget(timedelta(seconds=0.05), "1h", 100)
    far = budget("1h")
    time.sleep(0.06)
    assert limited.late() == "0.05 s are over"
    assert far.late() is None


def test_the_title_tells_the_last_epoch_if_there_is_one():
    assert budget("10ep").title(2) == "Epoch 3/10"
    assert budget(2, epoch=10).title(11) == "Epoch 12/12"
    assert budget("5st").title(2) == "Epoch 3"


def test_steps_to_come_are_counted():
    assert budget(3, epoch=2).steps(10) == 30
    assert budget(3, "12st", step=100).steps(10) == 12
    assert budget(3).steps(None) == math.inf
    assert budget("12st").steps(None) == 12
    assert budget("10min").steps(10) == math.inf


# ---------------------------------------------------------------------- Interval


def test_an_interval_in_steps_is_due_within_the_epoch():
    every = Interval(Duration(3, "st"))
    assert every.within_epoch
    assert [step for step in range(1, 11) if every.at_step(step)] == [3, 6, 9]
    assert not every.at_epoch(3, is_last=False)
    assert every.at_epoch(1, is_last=True)


def test_an_interval_in_seconds_is_due_once_each_time():
    every = Interval(Duration(0.05, "s"))
    assert not every.late()
    time.sleep(0.06)
    assert every.late()
    every.restart()  # when what was due is done
    assert not every.late()
    assert not Interval(Duration(3600, "s")).late()


def test_an_interval_in_epochs_is_due_at_their_end_and_at_the_last():
    every = Interval(Duration(2, "ep"))
    assert not every.within_epoch
    assert [epoch for epoch in range(1, 6) if every.at_epoch(epoch, is_last=epoch == 5)] == [2, 4, 5]
    assert not any(every.at_step(step) for step in range(1, 9))


# ---------------------------------------------------------------------- schedulers that end too early


def optimizer():
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


class Warmup:
    """A scheduler of a third party, which says how long it lasts."""

    total_iters = 5

    def step(self):
        pass


def one_cycle(over, steps):
    return OneCycleLR(over, max_lr=0.1, total_steps=steps)


def advance(over, scheduler, steps):
    for _ in range(steps):
        over.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda o: one_cycle(o, 10), "OneCycleLR lasts total_steps=10 steps, but this run takes it to 11"),
        (lambda o: PolynomialLR(o, total_iters=10), "PolynomialLR lasts total_iters=10 steps, but .* to 11 "),
        (lambda o: ChainedScheduler([StepLR(o, 3), PolynomialLR(o, 10)], o), "PolynomialLR lasts total_iters=10 "),
    ],
    ids=["one_cycle", "polynomial", "chained"],
)
def test_a_scheduler_that_ends_before_the_run_is_refused(build, message):
    scheduler = build(optimizer())
    refuse_short(scheduler, 10, "epoch")
    with pytest.raises(ValueError, match=message):
        refuse_short(scheduler, 11, "epoch")


def test_a_scheduler_of_a_third_party_is_refused_by_what_it_says():
    refuse_short(Warmup(), 5, "epoch")
    with pytest.raises(ValueError, match="Warmup lasts total_iters=5 steps, but this run takes it to 6"):
        refuse_short(Warmup(), 6, "epoch")


def test_the_message_names_both_numbers_and_what_a_step_is():
    message = re.escape(
        "OneCycleLR lasts total_steps=10 steps, but this run takes it to 12 (0 done, 12 to come, one an optimizer"
        " step); make it longer, or the run shorter"
    )
    with pytest.raises(ValueError, match=message):
        refuse_short(one_cycle(optimizer(), 10), 12, "optimizer step")
    with pytest.raises(ValueError, match="12 to come, one an epoch"):
        refuse_short(one_cycle(optimizer(), 10), 12, "epoch")


def test_steps_that_are_done_count():
    over = optimizer()
    scheduler = one_cycle(over, 10)
    advance(over, scheduler, 4)
    refuse_short(scheduler, 6, "epoch")
    with pytest.raises(ValueError, match=re.escape("takes it to 11 (4 done, 7 to come")):
        refuse_short(scheduler, 7, "epoch")


@pytest.mark.parametrize(
    "build",
    [
        lambda o: LinearLR(o, total_iters=2),
        lambda o: ConstantLR(o, total_iters=2),
        lambda o: CosineAnnealingLR(o, T_max=2),
        lambda o: StepLR(o, 2),
        lambda o: ReduceLROnPlateau(o),
        lambda o: ChainedScheduler([LinearLR(o, total_iters=2), StepLR(o, 2)], o),
        lambda o: SequentialLR(o, [LinearLR(o, total_iters=2), StepLR(o, 2)], [2]),
    ],
    ids=["linear", "constant", "cosine", "step", "plateau", "chained", "sequential"],
)
def test_a_scheduler_that_goes_on_is_never_too_short(build):
    over = optimizer()
    scheduler = build(over)
    refuse_short(scheduler, 50, "epoch")
    for _ in range(50):
        over.step()
        step_scheduler(scheduler, 1.0)


def test_a_run_of_unknown_length_is_refused_for_a_schedule_with_an_end_only():
    with pytest.raises(ValueError, match="lasts total_steps=10 steps, but nothing says how many optimizer steps"):
        refuse_short(one_cycle(optimizer(), 10), math.inf, "optimizer step")
    refuse_short(ConstantLR(optimizer()), math.inf, "optimizer step")


def warmed(over, milestone=5, steps=10):
    return SequentialLR(over, [ConstantLR(over, total_iters=milestone), one_cycle(over, steps)], [milestone])


def test_the_last_part_of_a_sequence_is_held_to_what_is_left_for_it():
    over = optimizer()
    scheduler = warmed(over)
    refuse_short(scheduler, 15, "epoch")
    with pytest.raises(ValueError, match="OneCycleLR lasts total_steps=10 steps"):
        refuse_short(scheduler, 16, "epoch")
    advance(over, scheduler, 15)  # torch agrees that 15 can be done, and 16 cannot
    with pytest.raises(ValueError, match="Tried to step 11 times"):
        advance(over, scheduler, 1)


@pytest.mark.parametrize("done", [3, 5, 8])
def test_a_sequence_that_is_partly_used_is_refused_by_what_is_left(done):
    over = optimizer()
    scheduler = warmed(over)
    advance(over, scheduler, done)
    refuse_short(scheduler, 15 - done, "epoch")
    with pytest.raises(ValueError, match="OneCycleLR lasts total_steps=10 steps"):
        refuse_short(scheduler, 16 - done, "epoch")


def test_an_early_part_of_a_sequence_that_ends_before_its_milestone_is_refused():
    over = optimizer()
    scheduler = SequentialLR(over, [one_cycle(over, 3), ConstantLR(over)], [10])
    refuse_short(scheduler, 3, "epoch")
    with pytest.raises(ValueError, match="OneCycleLR lasts total_steps=3 steps"):
        refuse_short(scheduler, 12, "epoch")


def test_a_run_that_ends_before_the_last_part_is_accepted():
    refuse_short(warmed(optimizer(), milestone=50), 20, "epoch")


# ---------------------------------------------------------------------- step_scheduler


def test_a_scheduler_is_stepped_once():
    over = optimizer()
    scheduler = StepLR(over, step_size=1, gamma=0.5)
    over.step()
    step_scheduler(scheduler, 3.0)
    assert over.param_groups[0]["lr"] == pytest.approx(0.05)


def test_reduce_on_plateau_gets_the_value_and_waits_without_one():
    over = optimizer()
    scheduler = ReduceLROnPlateau(over, patience=0, factor=0.5)
    for value in (1.0, None, None):
        step_scheduler(scheduler, value)
    assert (scheduler.last_epoch, over.param_groups[0]["lr"]) == (1, 0.1)
    step_scheduler(scheduler, 2.0)
    assert over.param_groups[0]["lr"] == pytest.approx(0.05)


# ---------------------------------------------------------------------- a share of the time


@pytest.mark.parametrize(("value", "share"), [("1%", 0.01), (" 0.5 % ", 0.005), ("100%", 1.0)])
def test_a_share_of_the_time_is_read(value, share):
    pace = read_interval(value, "log_every")
    assert (type(pace), pace.share) == (Pace, share)
    assert type(read_interval("10s", "log_every")) is Interval


def intervals(pace, *costs):
    """After each of these readings, in seconds."""
    found = []
    for cost in costs:
        pace.restart()
        pace.took(cost)
        found.append(pace.next_time - pace._last)
    return found


def test_the_dearer_a_reading_the_longer_until_the_next_one():
    pace = Pace(0.01)
    pace.begin(varies=True)
    assert intervals(pace, *[0.0004] * 3) == pytest.approx([0.2] * 3)  # a fifth of a hundredth
    assert intervals(pace, 1.0, 1.0, 1.0) == pytest.approx([0.4, 0.8, 1.6])  # one that was held up tells little
    assert intervals(pace, *[1.0] * 5)[-2:] == [10.0, 10.0]
    assert intervals(pace, *[0.0] * 20)[-1] == pytest.approx(0.1)


def test_a_long_run_is_read_less_often():
    pace = Pace(0.01)
    pace.begin(varies=True)
    pace.began -= 50_000
    assert intervals(pace, *[0.0001] * 9)[-1] == pytest.approx(5.0, rel=1e-3)


def test_of_several_processes_it_is_every_ten_seconds():
    pace = Pace(0.01)
    pace.begin(varies=False)
    assert intervals(pace, 0.0001, 1.0) == [10.0, 10.0]
    assert not pace.late()
    pace._last -= 10.0
    assert pace.late()
