"""Records from lines: what of a step is one record, which lines hold, a file that is being written."""

import json
import math
import random
import subprocess
import sys
import time
import tracemalloc

import pytest

from tests.logs.making import STARTED, attempt, checkpoint, end, point, row, steps, write
from zae_engine.logs.history_file import HistoryFile, held, parsed
from zae_engine.logs.merging import Tail, records_of


def told(records):
    return [(record.step, record.values.get("train/loss")) for record in records]


# ---------------------------------------------------------------------- one step, one record


def test_points_and_rows_of_a_step_are_one_record(tmp_path):
    lines = [attempt(), point(3), point(6), row(0, 6, test_loss=0.5, train_acc=0.75), point(9, epoch=2)]
    first, second, third = records_of(write(tmp_path, lines))
    assert [first.step, second.step, third.step] == [3, 6, 9]
    assert second.values == {
        "epoch": 1.0,
        "lr": 0.001,
        "train/loss": 1 / 6,
        "samples/s": 16.0,
        "waiting for data": 0.0,
        "train/loss_epoch": 1 / 6,
        "train/acc": 0.75,
        "test/loss": 0.5,
    }
    assert third.values["epoch"] == 2.0
    assert "test/loss" not in third.values


def test_of_two_rows_of_a_step_the_later_one_holds(tmp_path):
    lines = [attempt(), point(6), row(0, 6, test_loss=0.9), row(0, 6, test_loss=0.5, test_acc=1.0)]
    (record,) = records_of(write(tmp_path, lines))
    assert record.values["test/loss"] == 0.5
    assert record.values["test/acc"] == 1.0


def test_named_validations_and_metrics_of_the_epoch(tmp_path):
    line = row(0, 6, test_loss=0.5, test_clean_loss=0.4, test_noisy_acc=0.3, train_grad_norm=2.0, saving=0.1)
    mean = point(6)
    mean["train"]["grad_norm"] = 1.0
    (record,) = records_of(write(tmp_path, [attempt(), mean, line]))
    assert record.values["test/clean_loss"] == 0.4
    assert record.values["test/noisy_acc"] == 0.3
    assert (record.values["train/grad_norm"], record.values["train/grad_norm_epoch"]) == (1.0, 2.0)
    assert not {"saving", "seconds", "number", "train/saving"} & record.values.keys()


def test_what_json_lacks_is_a_number_again(tmp_path):
    mean = point(2)
    mean["train"] = {"loss": "nan", "gain": "inf", "cost": "-inf", "missing": None}
    (record,) = records_of(write(tmp_path, [attempt(), mean, row(0, 2, test_loss="nan")]))
    assert math.isnan(record.values["train/loss"])
    assert math.isnan(record.values["test/loss"])
    assert (record.values["train/gain"], record.values["train/cost"]) == (math.inf, -math.inf)
    assert "train/missing" not in record.values


def test_a_point_without_time_has_no_speed(tmp_path):
    (record,) = records_of(write(tmp_path, [attempt(), point(2, all=0.0)]))
    assert "samples/s" not in record.values


def test_a_record_has_the_time_of_its_point(tmp_path):
    lines = [attempt(), point(2, time=STARTED + 5), row(0, 2), row(1, 4)]
    first, second = records_of(write(tmp_path, lines))
    assert first.time == STARTED + 5
    assert second.time == STARTED + 5  # a row of its own has the time of what came before


# ---------------------------------------------------------------------- the end


def test_a_record_is_whole_when_another_step_comes(tmp_path):
    folder = write(tmp_path, [attempt(), point(2), point(4)])
    tail = Tail(folder / "history.jsonl")
    assert told(tail.read()) == [(2, 1 / 2)]
    write_more(folder, row(0, 4, test_loss=0.25), end(step=4))
    (record,) = tail.read()
    assert (record.step, record.values["test/loss"]) == (4, 0.25)
    assert [*tail.read(), *tail.rest()] == []


def write_more(folder, *lines):
    with open(folder / "history.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_what_a_checkpoint_goes_on_from_waits_for_its_validation(tmp_path):
    """A signal between the last step of an epoch and its row: the resumed run begins with that row."""
    left = [attempt(), point(2), point(4), checkpoint(4), end("interrupted", step=4)]
    folder = write(tmp_path, left)
    tail = Tail(folder / "history.jsonl")
    assert told(tail.read()) == [(2, 1 / 2)]
    write_more(folder, attempt(2, after=4, step=4), row(0, 4, test_loss=0.25), point(6), end(step=6))
    records = [record for record in tail.read() if record.step > 2]
    assert told(records) == [(4, 1 / 4), (6, 1 / 6)]
    assert records[0].values["test/loss"] == 0.25


def test_the_end_of_an_epoch_is_not_held_back(tmp_path):
    lines = [attempt(), point(4), row(0, 4, test_loss=0.25), checkpoint(4), end("interrupted", step=4)]
    assert told(Tail(write(tmp_path, lines) / "history.jsonl").read()) == [(4, 1 / 4)]
    lines = [attempt(), point(4), end("failed", step=4)]
    assert told(Tail(write(tmp_path, lines) / "history.jsonl").read()) == [(4, 1 / 4)]


def test_of_a_run_that_broke_off_everything_is_told(tmp_path):
    assert told(records_of(write(tmp_path, [attempt(), point(2), point(4), checkpoint(4)]))) == [(2, 1 / 2), (4, 1 / 4)]


# ---------------------------------------------------------------------- lines that do not hold


def test_superseded_lines_give_no_record(tmp_path):
    lines = [attempt(), point(2), checkpoint(2), point(3), point(5), row(0, 6)]
    lines += [attempt(2, after=3, step=2), point(4), row(0, 6, test_loss=0.5), end(step=6)]
    folder = write(tmp_path, lines)
    assert [record.step for record in records_of(folder)] == [2, 4, 6]
    assert HistoryFile(folder / "history.jsonl").resumes == [2]


def test_a_run_begun_anew_in_a_folder_supersedes_everything(tmp_path):
    folder = write(tmp_path, [attempt(), point(2), point(9), attempt(2), point(1), end(step=1)])
    assert told(records_of(folder)) == [(1, 1.0)]


def test_a_torn_last_line_is_passed_over(tmp_path):
    whole = json.dumps(point(4)).encode()
    for cut in range(0, len(whole), 7):
        folder = write(tmp_path, [attempt(), point(2)], tail=whole[:cut])
        tail = Tail(folder / "history.jsonl")
        assert [*told(tail.read()), *told(tail.rest())] == [(2, 1 / 2)]


def test_a_torn_line_in_the_middle_counts_as_none(tmp_path):
    """As the next attempt counts: its number of the line that it follows skips it."""
    folder = write(
        tmp_path, [attempt(), point(2), checkpoint(2)], tail=json.dumps(steps(3, loss=[0.5, 0.4])).encode()[:-9]
    )
    file = HistoryFile(folder / "history.jsonl")
    file.append([attempt(2, after=file.count, step=2), point(3), end(step=3)])
    assert file.count == 6
    assert told(records_of(folder)) == [(2, 1 / 2), (3, 1 / 3)]


def random_lines(generator):
    """A history with any resumes, within and between attempts."""
    lines, step = [attempt()], 0
    for _ in range(generator.randrange(3, 40)):
        if generator.random() < 0.2:
            after = generator.randrange(len(lines) + 1)
            step = max([line.get("step", 0) for line in held(lines[:after])], default=0)
            lines.append(attempt(2, after=after, step=step))
        else:
            step += 1
            lines += [steps(step, loss=[1.0]), point(step)]
    return lines


def test_what_holds_is_what_the_history_says(tmp_path):
    generator = random.Random(5)
    for number in range(60):
        lines = random_lines(generator)
        folder = write(tmp_path / str(number), lines)
        wanted = [line for line in held(lines) if line["kind"] != "steps"]
        assert [line for line in Tail(folder / "history.jsonl").lines() if line["kind"] != "steps"] == wanted


def test_a_resume_is_noticed_by_who_reads_on(tmp_path):
    """A trainer that goes back to a checkpoint and on, while a logger reads."""
    folder = write(tmp_path, [attempt(), point(2), checkpoint(2), point(4), point(6)])
    tail = Tail(folder / "history.jsonl")
    assert told(tail.read()) == [(2, 1 / 2), (4, 1 / 4)]
    write_more(folder, attempt(2, after=3, step=2), point(3), point(5), point(7))
    assert told(tail.read()) == [(2, 1 / 2), (3, 1 / 3), (5, 1 / 5)]
    write_more(folder, end(step=7))
    assert told(tail.read()) == [(7, 1 / 7)]


# ---------------------------------------------------------------------- a file that is being written

APPENDING = """
import sys, time
from tests.logs.making import attempt, end, point, steps
with open(sys.argv[1], "ab", buffering=0) as file:
    import json
    for line in [attempt(), *(l for s in range(1, 301) for l in (steps(s, loss=[1.0]), point(s))), end(step=300)]:
        text = json.dumps(line).encode() + b"\\n"
        file.write(text[:len(text) // 2])
        if line.get("step", 1) % 50 == 0:
            time.sleep(0.02)
        file.write(text[len(text) // 2:])
"""


@pytest.mark.usefixtures("starts_processes")
def test_a_tail_reads_while_another_process_appends(tmp_path):
    path = tmp_path / "history.jsonl"
    tail, seen = Tail(path), []
    assert list(tail.read()) == []  # there is no file yet
    with subprocess.Popen([sys.executable, "-c", APPENDING, str(path)]) as process:
        while process.poll() is None:
            seen += tail.read()
            time.sleep(0.005)
    assert process.returncode == 0
    seen += tail.read()
    assert told(seen) == [(step, 1 / step) for step in range(1, 301)]


def test_a_long_history_is_not_held_in_memory(tmp_path):
    """What is behind, of a slow logger or of a resumed run, may be far more than fits."""
    folder = write(tmp_path, [attempt(), *(point(step) for step in range(1, 5001)), attempt(2, 5001, 5000), end()])
    tail = Tail(folder / "history.jsonl")
    tracemalloc.start()
    try:
        count = sum(1 for _ in tail.read())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 5000
    assert most < 300_000, f"{most:,} bytes for a file of {(folder / 'history.jsonl').stat().st_size:,}"


# ---------------------------------------------------------------------- every step


def test_every_step_is_a_record_with_values_and_time(tmp_path):
    lines = [attempt(time=STARTED), steps(1, loss=[0.5, 0.4], grad_norm=[None, 2.0]), point(2, time=STARTED + 10)]
    lines += [row(0, 2, test_loss=0.3), steps(3, epoch=2, loss=["nan"]), point(3, epoch=2, time=STARTED + 20), end()]
    first, second, third = records_of(write(tmp_path, lines), every_step=True)
    assert first.values == {"train/loss": 0.5}
    assert second.values.items() >= {"train/loss": 0.4, "train/grad_norm": 2.0, "test/loss": 0.3}.items()
    assert math.isnan(third.values["train/loss"])
    assert [record.time for record in (first, second, third)] == [STARTED + 5, STARTED + 10, STARTED + 20]


def test_steps_grow_and_are_there_once_after_a_resume(tmp_path):
    lines = [attempt(), steps(1, loss=[1.0, 2.0]), point(2), checkpoint(2), steps(3, loss=[3.0, 4.0]), point(4)]
    lines += [attempt(2, after=4, step=2), steps(3, loss=[3.0]), point(3), steps(4, loss=[4.0]), point(4), end(step=4)]
    records = records_of(write(tmp_path, lines), every_step=True)
    assert told(records) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


@pytest.mark.parametrize("every_step", [False, True])
def test_the_format_before_this_one(tmp_path, every_step):
    """Lines of single steps, and neither points nor an end."""
    lines = [attempt(), *({"kind": "step", "step": s, "epoch": 1, "loss": 1 / s, "grad_norm": 2.0} for s in (1, 2))]
    lines += [row(0, 2, test_loss=0.25), {"kind": "checkpoint", "step": 2, "name": "000001-step-2"}]
    records = records_of(write(tmp_path, lines), every_step)
    assert [record.step for record in records] == ([1, 2] if every_step else [2])
    assert records[-1].values["test/loss"] == 0.25
    assert records[-1].values["train/loss"] == 0.5
    assert all(record.time == STARTED for record in records)


def test_a_folder_of_no_run_has_no_records(tmp_path):
    assert records_of(tmp_path) == []
    assert parsed(b"") is None
