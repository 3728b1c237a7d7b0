import gc

import pytest
import torch

from zae_engine.trainer import device


@pytest.fixture(autouse=True)
def _one_thread_and_no_leftovers():
    """One thread, as the figures in the documentation; trainers of an earlier test must not hold Accelerate's state."""
    torch.set_num_threads(1)
    yield
    if device._living:
        gc.collect()
