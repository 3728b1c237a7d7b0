import pytest
import torch

from zae_engine.trainer.afterwards import Afterwards

# A picture takes longer than most of the runs here; the tests of pictures ask for them.
Afterwards.pictures = False


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread, as the figures in the documentation."""
    torch.set_num_threads(1)
