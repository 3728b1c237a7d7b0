"""A run folder is read as it stands: whole, cut, resumed, going on right now."""

import math
import subprocess
import sys

import pytest

from tests.checkpoint.making import make
from tests.logs.making import STARTED, attempt, checkpoint, end, note, point, row, steps, write
from zae_engine.checkpoint.lock import RunLock
from zae_engine.logs.reading import RunFolderError, find_runs, read_run


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "first"


def test_values_come_by_name_with_their_steps(folder):
    run = read_run(write(folder, [attempt(), steps(1, loss=[0.5, "nan", "inf"], grad_norm=[None, 2.0, 3.0])]))
    assert run.steps["loss"].step.tolist() == [1, 2, 3]
    assert str(run.steps["loss"].value.tolist()) == "[0.5, nan, inf]"
    assert run.steps["grad_norm"].step.tolist() == [2, 3]
    assert (run.step, run.name, run.status) == (3, "first", "broken off")


def test_lines_of_one_step_each_are_the_same(folder):
    lines = [{"kind": "step", "step": i, "epoch": 1, "loss": 1 / i} for i in (1, 2)]
    assert read_run(write(folder, lines)).steps["loss"].value.tolist() == [1.0, 0.5]


def test_a_resume_supersedes_but_its_time_was_spent(folder):
    first = [attempt(), steps(1, loss=[1.0, 0.9]), row(0, 2, 0.9), checkpoint(2)]
    lost = [steps(3, loss=[9.0]), point(3, time=STARTED + 10, data=1.0), row(1, 3, 0.1)]
    second = [attempt(2, after=4, step=2, time=STARTED + 100), steps(3, loss=[0.8]), row(1, 3, 0.8)]
    last = [point(3, time=STARTED + 105, evaluation=0.5), end(step=3, time=STARTED + 106)]
    run = read_run(write(folder, [*first, *lost, *second, *last], [note(), note()]))
    assert run.steps["loss"].value.tolist() == [1.0, 0.9, 0.8]
    assert [r["test_loss"] for r in run.rows] == [0.9, 0.8]
    assert [(a["attempt"], a["step"]) for a in run.attempts] == [(1, 0), (2, 2)]
    assert len(run.points) == 1
    assert run.seconds == 16
    assert run.spent == {"compute": 2.5, "data": 1.0, "evaluation": 0.5, "logging": 0.0, "saving": 0.0}
    assert (run.samples, run.samples_per_second, run.status) == (64, 16.0, "done")
    assert (run.best.name, run.best.value, run.best.epoch) == ("test_loss", 0.8, 2)


def test_of_two_rows_with_one_number_the_later_holds(folder):
    run = read_run(write(folder, [row(0, 4), row(0, 4, 0.5, saving=0.1), row(1, 8, "nan")]))
    assert run.rows[0]["test_loss"] == 0.5
    assert math.isnan(run.rows[1]["test_loss"])
    assert (run.best.value, run.epoch, run.columns[-2:]) == (0.5, 2, ["saving", "seconds"])


@pytest.mark.parametrize(
    ("monitor", "best"),
    [("loss (min)", ("test_loss", 0.2)), ("acc (max)", ("test_acc", 0.9)), ("train_acc (max)", ("train_acc", 0.7))],
)
def test_the_best_is_of_what_the_run_watches(folder, monitor, best):
    lines = [row(0, 4, 0.4, test_acc=0.9, train_acc=0.1), row(1, 8, 0.2, test_acc=0.8, train_acc=0.7)]
    run = read_run(write(folder, lines, [note(monitor)]))
    assert (run.best.name, run.best.value) == best
    assert run.best.saved is None


def test_where_the_best_is_saved(folder):
    write(folder, [row(0, 10, 0.4), row(1, 20, 0.6)], [note()])
    make(folder / "checkpoints", 1)
    assert read_run(folder).best.saved == "checkpoints/000001-step-10"
    make(folder / "checkpoints", 2, best={"epoch": 0, "serial": 1})
    (folder / "model.safetensors").write_bytes(b"weights")
    assert read_run(folder).best.saved == "model.safetensors"
    make(folder / "checkpoints", 3, best={"epoch": 1, "serial": 3})
    assert read_run(folder).best.saved == "checkpoints/000001-step-10"


@pytest.mark.parametrize("status", ["done", "interrupted", "failed"])
def test_an_end_tells_the_status_until_the_run_goes_on(folder, status):
    lines = [attempt(), steps(1, loss=[1.0]), end(status)]
    assert read_run(write(folder, lines)).status == status
    run = read_run(write(folder, [*lines, steps(2, loss=[1.0])]))
    assert (run.status, run.end) == ("broken off", None)


def test_a_run_without_end_lines_is_done_by_its_last_checkpoint(folder):
    write(folder, [row(0, 10)])
    make(folder / "checkpoints", 1, complete=True)
    assert read_run(folder).status == "done"


def test_a_run_that_goes_on_is_running_and_is_not_disturbed(folder):
    write(folder, [attempt(), end()])
    with RunLock(folder):
        files = sorted(path.name for path in folder.iterdir())
        assert read_run(folder).status == "running"
        assert sorted(path.name for path in folder.iterdir()) == files
    assert read_run(folder).status == "done"


def test_time_between_two_calls_in_one_process_is_not_the_run_s(folder):
    calls = [point(1, time=STARTED + 2), end(time=STARTED + 3), point(2, time=STARTED + 500), end(time=STARTED + 501)]
    assert read_run(write(folder, [attempt(), *calls])).seconds == 3 + 3


@pytest.mark.parametrize("torn", [b'{"kind": "ro', b"\xff\x00", b"3", b"[]"])
def test_a_torn_line_costs_that_line_only(folder, torn):
    assert len(read_run(write(folder, [row(0, 1), row(1, 2)], tail=torn)).rows) == 2


def test_senseless_lines_are_passed_over(folder):
    odd = [{"kind": "steps", "first": 1, "values": None}, {"kind": "steps", "first": 1, "values": {"loss": 3}},
           {"kind": "steps", "first": "x", "values": {}}, {"kind": "row"}, {"kind": "point", "seconds": 3}, {},
           steps(1, loss=[1.0, {}])]  # fmt: skip
    run = read_run(write(folder, odd))
    assert (run.rows, run.seconds, str(run.steps["loss"].value.tolist())) == ([], 0, "[1.0, nan]")


def test_a_run_that_has_only_just_begun(folder):
    run = read_run(write(folder, [], [note()]))
    assert (run.rows, run.best, run.step, run.epoch, run.samples_per_second) == ([], None, 0, 0, None)


def test_what_is_no_run_folder_is_told(folder, tmp_path):
    write(folder, [row(0, 1)])
    for path, said in [
        (tmp_path / "runs" / "frist", "there is no '.*frist'; did you mean '.*first'"),
        (tmp_path / "runs", "is no run folder; below it are .*first"),
        (tmp_path, "holds runs; a run folder has a history.jsonl"),
    ]:
        with pytest.raises(RunFolderError, match=said):
            read_run(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="is empty; a run folder has"):
        read_run(tmp_path / "empty")
    (tmp_path / "curves.png").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"curves.png' is a file; give the run's folder"):
        read_run(tmp_path / "curves.png")
    (folder / "checkpoints").mkdir()
    with pytest.raises(RunFolderError, match=r"is within a run folder; give that: '.*first'"):
        read_run(folder / "checkpoints")
    with pytest.raises(RunFolderError, match="no line can be read"):
        read_run(write(tmp_path / "damaged", [], tail=b"\x00\x00"))


def test_runs_are_found_below_a_folder(folder, tmp_path):
    for name in ("b", "a/x", "a/checkpoints/no", ".hidden"):
        write(tmp_path / name, [row(0, 1)])
    assert find_runs(tmp_path) == [tmp_path / "a" / "x", tmp_path / "b"]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]
    assert read_run(tmp_path / "b" / "history.jsonl").name == "b"
    (tmp_path / "none").mkdir()
    with pytest.raises(RunFolderError, match="is empty"):
        find_runs(tmp_path / "none")


@pytest.mark.usefixtures("starts_processes")
def test_no_torch_is_imported():
    code = "import sys, zae_engine.logs.reading; sys.exit('torch' in sys.modules or 'accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_number_that_no_float_holds_is_nan(tmp_path):
    found = read_run(write(tmp_path / "run", [attempt(), steps(1, loss=[1.0, 10**400, 2.0])])).steps["loss"].value
    assert [found[0], math.isnan(found[1]), found[2]] == [1.0, True, 2.0]
