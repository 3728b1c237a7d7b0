"""Random streams: a function of the seed, and put back where somebody else's were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def draw_seed() -> int:
    """Draw a seed from torch's generator, so that the user's own ``torch.manual_seed`` repeats it."""
    return int(torch.randint(2**31, ()))


def mix(*parts: object) -> int:
    """A whole number below 2**63 from the BLAKE2b hash of ``"part/part/…"``."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_host(value: int) -> None:
    """Seed python's, numpy's and torch's CPU generator."""
    random.seed(value)
    np.random.seed(value % 2**32)
    # Not torch.manual_seed: for each kind of device that is built in but not in use, it keeps a call for later, at a
    # millisecond and a few kilobytes an epoch.
    torch.default_generator.manual_seed(value)


def set_streams(device: torch.device, seed: int, *purpose: int | str) -> None:
    """Set python's, numpy's and torch's generators (the CPU's and the device's) from `seed` and what they are for.

    Parameters
    ----------
    device : torch.device
        Whose generator is set beside the CPU's.
    seed : int
        The run's seed.
    *purpose : int or str
        Tells streams of one seed apart, such as ``"train", epoch``. The generators get the first 8 bytes of the
        BLAKE2b hash of ``"seed/purpose/…"``, so neighbouring seeds share nothing.
    """
    value = mix(seed, *purpose)
    seed_host(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


def streams_of(device: torch.device) -> dict[str, Any]:
    """Where python's, numpy's and torch's generators are now, as plain values and arrays."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.default_generator.get_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def put_streams(device: torch.device, state: dict[str, Any]) -> None:
    """Go on where `streams_of` was called, as far as this device has a state of its kind."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.default_generator.set_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers own, each once."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def base_seed(generator: torch.Generator | None) -> int:
    """Draw what torch draws whenever it starts to walk over a loader, except over one whose workers have stayed."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def loader_states(loader: Any) -> list[torch.Tensor]:
    """Where the generators are that a loader and its samplers own."""
    return [generator.get_state() for generator in generators_of(loader)]


def put_loader_states(loader: Any, states: list[torch.Tensor]) -> None:
    """Put them there again, as far as the loader has them."""
    for generator, state in zip(generators_of(loader), states, strict=False):
        generator.set_state(state)


@contextmanager
def generators_kept(loader: Any) -> Iterator[None]:
    """Put the generators that a loader and its samplers own back afterwards."""
    before = [(g, g.get_state()) for g in generators_of(loader)]
    try:
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)


class OwnStreams:
    """Random streams of python, numpy and torch's CPU generator that belong to one source of data.

    Inside ``with streams:`` they are the global ones; outside, the global ones are what they were. Numpy's is exchanged
    as an object, which is quicker than writing its state twice.

    Parameters
    ----------
    seed : int
        What they begin with.
    """

    def __init__(self, seed: int = 0) -> None:
        self._numpy: Any = np.random.MT19937()
        self._inside = random.getstate(), torch.default_generator.get_state()
        with self:
            seed_host(seed)

    def __enter__(self) -> None:
        self._outside = random.getstate(), torch.default_generator.get_state(), np.random.get_bit_generator()  # type: ignore[attr-defined]  # it is public
        # Of every two normal numbers numpy keeps the second for later, and forgets it when its generator is exchanged.
        state: Any = np.random.get_state(legacy=False)
        self._waiting = state if state["has_gauss"] else None
        random.setstate(self._inside[0])
        torch.default_generator.set_state(self._inside[1])
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]

    def __exit__(self, *exception: object) -> None:
        self._inside = random.getstate(), torch.default_generator.get_state()
        random.setstate(self._outside[0])
        torch.default_generator.set_state(self._outside[1])
        np.random.set_bit_generator(self._outside[2])  # type: ignore[attr-defined]
        if self._waiting is not None:
            np.random.set_state(self._waiting)


@contextmanager
def streams_kept(device: torch.device) -> Iterator[None]:
    """Put every generator back afterwards, so that what runs inside draws nothing from the outside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type  # fork_rng wants a kind even for no devices
    try:
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
