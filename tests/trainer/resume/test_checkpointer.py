"""What a session, whose workers run, has to know of their runs afterwards."""

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer.addons import StateManagerAddon

Managed = PlainTrainer.add_on(StateManagerAddon)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_what_was_loaded_is_used_up_by_a_training_in_the_workers_only(tmp_path, mode):
    make(Managed, save_path=tmp_path).run(1, loader())
    session, worker = (make(Managed, save_path=tmp_path) for _ in range(2))
    for trainer in (session, worker):  # a worker is a fork, and has what was loaded, too
        trainer.load_state("last")
    worker.toggle(mode)
    worker.run(1, loader())
    session._kept = worker._kept
    assert (session._checkpointer.loaded is None) == (mode == "train")
