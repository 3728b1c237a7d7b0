"""Where a run stands: every transition there is, and the ones that real runs make."""

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.loop.run_status import TRANSITIONS, Standing

Managed = PlainTrainer.add_on(StateManagerAddon)

# A row an event, a column a standing; None where it cannot happen.
TABLE = {
    #             FRESH      LOADED       CONCLUDED  RUNNING   ENDED      BROKEN
    "begin": ("RUNNING", "RUNNING", "RUNNING", "RUNNING", "RUNNING", "RUNNING"),
    "end": (None, None, None, "ENDED", None, None),
    "break off": (None, None, None, "BROKEN", None, None),
    "load": ("LOADED", "LOADED", "LOADED", None, "LOADED", "LOADED"),
    "conclude": (None, "CONCLUDED", None, None, None, None),
    "pass over": (None, "FRESH", None, None, None, None),
    "save": ("ENDED", "ENDED", "ENDED", None, "ENDED", "BROKEN"),
}


def test_the_table_has_every_event_and_every_standing():
    assert set(TABLE) == set(TRANSITIONS)
    assert [each.name for each in Standing] == ["FRESH", "LOADED", "CONCLUDED", "RUNNING", "ENDED", "BROKEN"]


@pytest.mark.parametrize("event", TABLE)
@pytest.mark.parametrize("number", range(6))
def test_a_transition(event, number):
    standing, wanted = list(Standing)[number], TABLE[event][number]
    if wanted is None:
        with pytest.raises(ValueError, match=f"'{event}' cannot happen where {standing.value}"):
            standing.after(event)
    else:
        assert standing.after(event) is Standing[wanted]


def test_who_owns_the_folder():
    assert [each.name for each in Standing if each.owns] == ["RUNNING", "ENDED", "BROKEN"]


# ---------------------------------------------------------------------- real runs


class Seen(Managed):
    """Notes where it stands in its steps; may fail in one."""

    fails_at = 0

    def train_step(self, batch):
        self.stood = self._journal.standing
        if self.progress_checker.get_step() == self.fails_at:
            raise ArithmeticError("on purpose")
        return super().train_step(batch)


def standing(trainer):
    return trainer._journal.standing.name


def test_a_run_that_comes_to_its_end(tmp_path):
    trainer = make(Seen, save_path=tmp_path)
    assert standing(trainer) == "FRESH"
    trainer.run(1, loader())
    assert (trainer.stood.name, standing(trainer)) == ("RUNNING", "ENDED")
    trainer.save_state()
    assert standing(trainer) == "ENDED"


def test_a_run_that_breaks_off_and_is_gone_back_to(tmp_path):
    trainer = make(Seen, save_path=tmp_path)
    trainer.fails_at = 9
    with pytest.raises(ArithmeticError):
        trainer.run(2, loader())
    assert standing(trainer) == "BROKEN"
    with pytest.raises(CheckpointError, match="broke off within an epoch"):
        trainer.save_state()
    with pytest.raises(CheckpointError, match=r"the last run broke off, and 00000\d-step-6 was saved before"):
        trainer.run(2, loader())
    assert standing(trainer) == "BROKEN"
    trainer.load_state("last")
    assert standing(trainer) == "LOADED"
    trainer.fails_at = 0
    trainer.run(1, loader())
    assert standing(trainer) == "ENDED"


def test_a_run_that_is_refused_has_changed_nothing(tmp_path):
    trainer = make(Seen, save_path=tmp_path)
    trainer.run(1, loader())
    with pytest.raises(ValueError, match="valid_every"):
        trainer.run(1, loader(), valid_every="never")
    with pytest.raises(ValueError, match="can be walked once"):
        trainer.run(2, iter(list(loader())))
    assert standing(trainer) == "ENDED"
    trainer.run(1, loader())  # and it goes on from where it was
    assert trainer.progress_checker.get_step() == 13


def test_what_is_loaded_waits_for_a_run_that_is_not_refused(tmp_path):
    first = make(Seen, save_path=tmp_path, save_every="4st", keep_last=None)
    first.fails_at = 6
    with pytest.raises(ArithmeticError):
        first.run(2, loader())
    again = make(Seen, save_path=tmp_path)
    again.load_state("last")  # in the middle of an epoch
    with pytest.raises(ValueError, match="can be walked once"):
        again.run(2, iter(list(loader())))
    assert standing(again) == "LOADED"
    again.run(1, loader())
    assert again.history[-1]["step"] == 6  # the epoch was gone on with, and not begun anew


def test_a_script_that_is_done_is_concluded(tmp_path):
    make(Seen, save_path=tmp_path).run(1, loader(), resume="auto")
    again = make(Seen, save_path=tmp_path)
    again.run(1, loader(), resume="auto")
    assert standing(again) == "CONCLUDED"


def test_a_call_that_was_done_before_is_passed_over(tmp_path):
    first = make(Seen, save_path=tmp_path)
    for _ in range(2):
        first.run(1, loader(), resume="auto")
    again = make(Seen, save_path=tmp_path)
    again.run(1, loader(), resume="auto")
    assert standing(again) == "FRESH"
    with pytest.raises(CheckpointError, match="has the checkpoints of an earlier run"):
        again.run(1, loader())
    again.run(1, loader(), resume="auto")
    assert standing(again) == "CONCLUDED"
