"""Run folders as pictures: what is in them, not what they look like."""

import math
import threading
import time

import numpy as np
import pytest

from tests.logs.digits_run import train
from zae_engine.logs.curves import draw_curves, figure_of, resumes_of, steps_of
from zae_engine.logs.history_file import HistoryFile
from zae_engine.logs.reading import RunFolderError, read_run


def written(folder, *lines):
    """A run folder with a history of these lines."""
    folder.mkdir(exist_ok=True)
    HistoryFile(folder / "history.jsonl").append(list(lines))
    return folder


def began(step=0, after=0, attempt=1):
    return {"kind": "attempt", "attempt": attempt, "after": after, "step": step, "from": None, "time": 1.0}


def values(first, **series):
    return {"kind": "steps", "epoch": 1, "first": first, "values": series}


def row(number, step, **values):
    return {"kind": "row", "number": number, "epoch": number + 1, "step": step, **values}


def figure(run):
    run = read_run(run)
    return figure_of(run.rows, steps_of(run), resumes_of(run), title=run.name)


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def curves(figure, panel=0):
    return {line.get_label(): line for line in figure.axes[panel].lines}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def killed(nursery, tmp_path_factory):
    """A run that was killed in the middle of its 12th step, and went on."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert nursery.run("-m", "tests.logs.digits_run", folder, 12).returncode == -9
    return train(folder)


def test_a_run_that_was_killed_is_drawn_whole(killed):
    drawn = figure(killed.save_path)
    assert titles(drawn) == ["loss", "acc", "gradient norm", "learning rate"]
    loss = curves(drawn)
    assert list(loss) == ["train, each step", "train", "test", "resumed"]
    assert loss["train, each step"].get_xdata().tolist() == list(range(1, 31))
    assert loss["train, each step"].get_ydata().tolist() == killed.get_loss_history()
    assert loss["test"].get_xdata().tolist() == [10, 20, 30]
    assert loss["test"].get_ydata().tolist() == killed.history.column("test_loss")
    assert loss["resumed"].get_xdata() == [10, 10]  # what was saved last before it was killed
    assert [axis.get_xlabel() for axis in drawn.axes] == ["", "", *["step (10 an epoch)"] * 2]


def test_the_picture_of_the_rows_has_the_same_panels(trained):
    drawn = trained.history.plot()
    assert titles(drawn) == titles(figure(trained.save_path))
    assert curves(drawn)["train"].get_ydata().tolist() == trained.history.column("train_loss")


def test_a_picture_is_there_whole_or_not_at_all(trained, tmp_path):
    before = set(trained.save_path.iterdir())
    assert draw_curves(trained.save_path) == trained.save_path / "curves.png"
    assert (trained.save_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert set(trained.save_path.iterdir()) - before <= {trained.save_path / "curves.png"}
    draw_curves(trained.save_path, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    kept = (tmp_path / "curves.svg").read_bytes()
    with pytest.raises(ValueError, match="is not supported"):
        draw_curves(trained.save_path, tmp_path / "curves.nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.svg"]
    assert (tmp_path / "curves.svg").read_bytes() == kept


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        draw_curves(tmp_path)


def test_a_thread_can_draw_while_the_main_thread_draws(trained, tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("one", "other")]
    thread = threading.Thread(target=draw_curves, args=(trained.save_path, paths[0]))
    thread.start()
    draw_curves(trained.save_path, paths[1])
    thread.join()
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_that_has_only_begun_is_drawn(tmp_path):
    assert titles(figure(written(tmp_path / "run", began()))) == ["loss"]
    drawn = figure(written(tmp_path / "run", values(1, loss=[3.0, 2.0])))
    assert curves(drawn)["train"].get_ydata().tolist() == [3.0, 2.0]


def test_a_long_run_keeps_its_spikes_and_takes_few_points(tmp_path):
    loss = np.full(200_000, 1.0)
    loss[123_456], loss[77] = 9.0, 0.5
    lines = [values(first + 1, loss=loss[first : first + 1000].tolist()) for first in range(0, len(loss), 1000)]
    drawn = figure(written(tmp_path / "run", began(), *lines))
    raw = curves(drawn)["train, each step"]
    assert len(raw.get_xdata()) < 2000
    assert dict(zip(*raw.get_data(), strict=True)) | {123_457: 9.0, 78: 0.5} == dict(zip(*raw.get_data(), strict=True))


def test_drawing_takes_no_longer_for_a_long_run(tmp_path):
    steps = np.arange(1, 1_000_001)
    seconds = []
    for count in (1000, 1_000_000):
        start = time.thread_time()
        figure_of([], {"loss": (steps[:count], 1 / steps[:count])}).savefig(tmp_path / "curves.png")
        seconds.append(time.thread_time() - start)
    assert seconds[1] < seconds[0] + 2, seconds  # all of its points would take far longer


def test_what_is_no_number_is_a_gap_and_is_marked(tmp_path):
    drawn = figure(written(tmp_path / "run", began(), values(1, loss=[3.0, math.nan, 2.0, math.inf, 1.0])))
    train, marks = curves(drawn)["train"], curves(drawn)["NaN or infinite"]
    assert np.isnan(train.get_ydata()).tolist() == [False, True, False, True, False]
    assert marks.get_xdata().tolist() == [2, 4]
    assert drawn.axes[0].get_xlim()[1] > 5


def test_validation_sets_are_curves_beside_the_test(tmp_path):
    sets = {"test_loss": 2.0, "test_acc": 0.5, "test_a_loss": 1.0, "test_a_acc": 0.6, "test_b_c_loss": 3.0}
    drawn = figure(written(tmp_path / "run", began(), row(0, 5, train_loss=2.0, train_acc=0.4, lr=0.1, **sets)))
    assert titles(drawn) == ["loss", "acc", "learning rate"]
    assert list(curves(drawn)) == ["train", "test", "test a", "test b_c"]
    assert list(curves(drawn, 1)) == ["train", "test", "test a"]
    colours = [line.get_color() for line in drawn.axes[0].lines]
    assert len(set(colours)) == len(colours)


def test_a_run_without_validation_has_no_test_curve(tmp_path):
    lines = [row(0, 5, train_loss=2.0, lr=0.1), row(1, 10, train_loss=1.0, lr=0.1)]
    drawn = figure(written(tmp_path / "run", began(), *lines))
    assert list(curves(drawn)) == ["train"]
    assert not drawn.legends  # one curve needs none


@pytest.mark.parametrize(("low", "scale"), [(0.1, "linear"), (0.001, "log"), (0.0, "linear")])
def test_a_loss_over_more_than_two_decades_is_logarithmic(tmp_path, low, scale):
    drawn = figure(written(tmp_path / "run", began(), values(1, loss=[2.0, 0.5, low], acc=[0.5, 0.5, low])))
    assert [axis.get_yscale() for axis in drawn.axes] == [scale, "linear"]


def test_a_spike_of_the_gradient_norm_does_not_hide_the_rest(tmp_path):
    drawn = figure(written(tmp_path / "run", began(), values(1, grad_norm=[1.0, 1.1, 30.0, 1.0])))
    assert {axis.get_title(loc="left"): axis.get_yscale() for axis in drawn.axes} == {"gradient norm": "log"}


def test_the_learning_rate_is_drawn_from_points_and_rows(tmp_path):
    points = [{"kind": "point", "step": step, "epoch": 1, "lr": 1 / step, "train": {"loss": 2.0}} for step in (2, 4)]
    drawn = figure(written(tmp_path / "run", began(), *points, row(0, 5, train_loss=2.0, lr=0.2)))
    assert drawn.axes[1].lines[0].get_data()[0].tolist() == [2, 4, 5]
    assert drawn.axes[1].lines[0].get_data()[1].tolist() == [0.5, 0.25, 0.2]
    assert curves(drawn)["train"].get_xdata().tolist() == [2, 4]  # means, since no step has left its own


def test_resumes_that_were_gone_back_behind_are_not_marked(tmp_path):
    again = [began(2, 2, 2), values(3, loss=[1.0, 1.0, 1.0]), began(4, 4, 3), began(2, 2, 4)]
    run = read_run(written(tmp_path / "run", began(), values(1, loss=[3.0, 2.0]), *again))
    assert resumes_of(run) == [2]


def test_many_resumes_have_words_only_where_there_is_room():
    rows = [{"epoch": 1, "step": 100, "train_loss": 1.0}]
    drawn = figure_of(rows, resumes=range(10, 40, 2))
    assert [line.get_xdata()[0] for line in drawn.axes[0].lines[1:]] == list(range(10, 40, 2))
    assert [text.xy[0] for text in drawn.axes[0].texts] == [10, 22, 34]


def test_names_are_drawn_as_they_are_written(tmp_path):
    rows = [{"epoch": 1, "step": 5, "train_loss": 1.0, "train_a$b$_{x": 1.0, "정확도": 0.5}]
    drawn = figure_of(rows)
    drawn.savefig(tmp_path / "names.png")  # a warning, say of a letter that no font has, would be an error here
    assert titles(drawn)[1] == "a$b$_{x"


def test_of_very_many_metrics_some_are_left_out_and_that_is_said():
    rows = [{"epoch": 1, "step": 5, "lr": 0.1, "train_loss": 1.0} | {f"train_metric{i}": 1.0 for i in range(40)}]
    drawn = figure_of(rows, title="run")
    assert (len(drawn.axes), titles(drawn)[0], titles(drawn)[-1]) == (23, "loss", "learning rate")
    assert drawn.get_suptitle() == "run · 19 more metrics"


def test_without_matplotlib_the_error_says_how_to_install_it(nursery, tmp_path):
    folder = written(tmp_path / "run", began())
    code = "import sys; from zae_engine.logs.curves import draw_curves; draw_curves(sys.argv[1])"
    done = nursery.run("-c", code, folder, without=["matplotlib"])
    said = "ModuleNotFoundError: curves.png needs matplotlib; install it: pip install 'zae-engine[plot]'"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, said)
    assert [path.name for path in folder.iterdir()] == ["history.jsonl"]
