import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread, as the figures in the documentation."""
    torch.set_num_threads(1)
