"""What is drawn is what was: no spike is lost, no gap is filled, a mean stays a mean."""

import math

import numpy as np
import pytest

from zae_engine.logs.panels import part_of, smoothed, thinned, window_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("test_acc", ("acc", "test")),
        ("train_grad_norm", ("grad_norm", "train")),
        ("lr", ("lr", "")),
        ("test_far_loss", ("loss", "test far")),
        ("test_far_away_loss", ("loss", "test far_away")),
        ("test_far_acc", ("acc", "test far")),
        ("test_own_loss", ("own_loss", "test")),
    ],
)
def test_a_column_belongs_to_a_panel(name, part):
    columns = ["lr", "train_own_loss", "train_loss", "test_loss", "test_far_loss", "test_far_away_loss", "test_far_acc"]
    assert part_of(name, [*columns, "test_own_loss"]) == part


@pytest.mark.parametrize("count", [1601, 9999, 100_000])
def test_every_spike_is_kept(count):
    x, y = np.arange(count), np.sin(np.arange(count) / 50.0)
    y[[7, count // 2, count - 2]] = (5.0, -5.0, 9.0)
    few, values = thinned(x, y)
    assert len(few) <= 1602
    assert {5.0, -5.0, 9.0} <= set(values)
    assert (few[0], few[-1]) == (0, count - 1)
    assert (np.diff(few) > 0).all()
    assert (y[few] == values).all()


def test_a_short_curve_is_left_alone_but_for_infinities():
    x, y = thinned(np.arange(4), np.array([1.0, math.nan, math.inf, 2.0]))
    assert (x.tolist(), str(y.tolist())) == ([0, 1, 2, 3], "[1.0, nan, nan, 2.0]")


def test_a_long_gap_stays_a_gap():
    y = np.ones(100_000)
    y[40_000:60_000] = math.nan
    x, thin = thinned(np.arange(100_000), y)
    assert np.isnan(thin[(x > 41_000) & (x < 59_000)]).all()
    assert np.isfinite(thin[(x < 39_000) | (x > 61_000)]).all()


def test_smoothing_keeps_lines_and_gaps():
    line = np.linspace(0.0, 1.0, 500)
    assert window_of(500) == 11
    assert smoothed(line)[20:-20] == pytest.approx(line[20:-20])
    line[100:110] = (math.nan, math.inf) * 5
    smooth = smoothed(line)
    assert np.isnan(smooth[100:110]).all()
    assert np.isfinite(np.delete(smooth, range(100, 110))).all()
    assert smoothed(np.full(1000, 3.0)) == pytest.approx(3.0)


def test_few_values_are_not_smoothed():
    assert smoothed(np.array([1.0, 5.0, 2.0])).tolist() == [1.0, 5.0, 2.0]
