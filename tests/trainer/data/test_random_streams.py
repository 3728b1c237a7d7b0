"""Random streams."""

import itertools
import random

import numpy as np
import pytest
import torch

from zae_engine.trainer.data.random_streams import draw_seed, set_streams, streams_kept

CPU = torch.device("cpu")


def draws(*stream):
    """What python, numpy and torch draw from a stream; without one, what they draw next."""
    if stream:
        set_streams(CPU, *stream)
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_stream_is_repeated_in_all_three_generators():
    first = draws(7, "train", 3)
    draws(8)
    assert draws(7, "train", 3) == first
    assert draws() != first


def test_streams_of_other_purposes_and_seeds_differ_in_all_three_generators():
    streams = [(0,), (1,), (0, "train", 0), (0, "train", 1), (0, "test", 0), (1, "train", 0), (0, "train", 10)]
    found = [draws(*stream) for stream in streams]
    for one, other in itertools.combinations(found, 2):
        assert all(a != b for a, b in zip(one, other, strict=True))


def test_seeds_and_purposes_do_not_run_into_each_other():
    assert draws(1, 23) != draws(12, 3)
    assert draws(1, "2/3") == draws(1, 2, 3)  # the hash is of the joined text, as it is documented


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63, 10**30])
def test_any_whole_number_is_a_seed(seed):
    assert draws(seed, "train", 0) == draws(seed, "train", 0)


def test_a_stream_is_the_same_on_every_machine():
    set_streams(CPU, 0, "train", 0)
    assert random.getrandbits(32) == 1688097748


def test_streams_are_put_back():
    set_streams(CPU, 0)
    untouched = draws()
    set_streams(CPU, 0)
    with streams_kept(CPU):
        inside = draws(5, "test", 0)
    assert draws() == untouched
    assert inside != untouched


def test_streams_are_put_back_after_an_error():
    set_streams(CPU, 0)
    untouched = draws()
    set_streams(CPU, 0)
    with pytest.raises(ValueError, match="not-a-number"), streams_kept(CPU):
        float(f"not-a-number {draws(5)}")
    assert draws() == untouched


def test_the_drawn_seed_is_repeated_by_torchs_own():
    seeds = []
    for manual in (3, 3, 4):
        torch.manual_seed(manual)
        seeds.append((draw_seed(), draw_seed()))
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][0] != seeds[0][1]
    assert all(0 <= seed < 2**31 for pair in seeds for seed in pair)


@pytest.mark.gpu
def test_streams_of_the_device_are_put_back():
    device = torch.device("cuda", 0)
    set_streams(CPU, 0)
    untouched = torch.rand((), device=device).item()
    set_streams(CPU, 0)
    with streams_kept(device):
        torch.rand(9, device=device)
    assert torch.rand((), device=device).item() == untouched
