"""A warning names the user's line, however many of the package's lie between."""

import linecache

import pytest

from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer.addons import AddOnBase, StateManagerAddon


class Wrapping(AddOnBase):
    def run(self, *args, **kwargs):
        return super().run(*args, **kwargs)


class Odd(PlainTrainer):
    def metric_on_epoch_end(self):
        return {"name": "a text"}


@pytest.mark.parametrize("kind", [Odd, Odd.add_on(Wrapping)], ids=lambda k: k.__name__)
def test_a_warning_from_within_a_run_names_the_line_that_led_to_it(kind):
    with pytest.warns(UserWarning, match="which is left out") as caught:
        make(kind).run(1, loader())
    line = linecache.getline(caught[0].filename, caught[0].lineno).strip()
    assert caught[0].filename == __file__
    assert line == (
        "return super().run(*args, **kwargs)" if issubclass(kind, Wrapping) else "make(kind).run(1, loader())"
    )


def test_through_a_folder_that_is_held_too(tmp_path):
    kind = Odd.add_on(StateManagerAddon)
    with pytest.warns(UserWarning, match="which is left out") as caught:
        make(kind, save_path=tmp_path).run(1, loader())
    assert caught[0].filename == __file__
