"""Killed at random moments, started again with the same command: the same model and the same history, to the bit."""

import os
import random
from functools import partial

import pytest

from tests.recovery.campaign import Campaign, table
from tests.recovery.harness import start

pytestmark = pytest.mark.usefixtures("starts_processes")

# CHAOS_SEED=N takes the moments of an earlier run again, as far as a clock lets one.
SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
EARLY = {"samples": 40, "patience": 2, "epochs": 8}  # the early stop comes after 25 steps
PLATEAU = EARLY | {"schedule": "plateau"}
STORMS = {
    "alone": (1, 14, EARLY),
    "alone, saving in the loop": (1, 8, PLATEAU | {"save_async": False, "save_format": "ckpt"}),
    "alone, with workers": (1, 2, EARLY | {"workers": 2}),
    "two": (2, 4, PLATEAU),
    "two, saving in the loop": (2, 3, EARLY | {"save_async": False, "save_every": "3st"}),
}


def test_there_are_enough_kills():
    assert sum(kills for _, kills, _ in STORMS.values()) >= 30


LONG = ("alone, saving in the loop", "two, saving in the loop")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in STORMS])
def test_kills_change_nothing(nursery, tmp_path, name):
    processes, kills, setup = STORMS[name]
    campaign = Campaign(partial(start, nursery), tmp_path, setup, processes, SEED)
    try:
        campaign.storm(kills)
    except BaseException:
        print(f"CHAOS_SEED={SEED}\n{table(campaign.kills)}")
        raise
    assert len(campaign.kills) == kills
    assert campaign.longest_start < 12  # a killed process's loader workers hold its lock until they notice
