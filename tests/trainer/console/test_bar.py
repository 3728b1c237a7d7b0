"""Counters of the run, and what is shown of it."""

import io
import os
import re
import struct
import subprocess
import sys
import time

import pytest

from zae_engine.trainer.console.bar import LineBar, SilentBar, TqdmBar, make_bar
from zae_engine.trainer.records.counters import ProgressChecker


class Terminal(io.StringIO):
    def isatty(self):
        return True


def describe(batch, batches):
    return {"Batch": f"{batch}/{batches}", "LR": "1e-3", "loss": f"{batch / 10:.2f}"}


def drawn(bar, total, batches=4, samples=8):
    """Walk an epoch, drawing after every batch; return what was written."""
    with bar.open("Epoch 1/2", total, describe):
        for _ in range(batches):
            bar.due = time.perf_counter()
            bar.advance(samples, time.perf_counter())
    return bar.stream.getvalue()


# ---------------------------------------------------------------------- ProgressChecker


def test_steps_and_epochs_are_counted_from_1():
    checker = ProgressChecker()
    assert (checker.get_step(), checker.get_epoch()) == (1, 1)
    checker.update_step()
    checker.update_step()
    checker.update_epoch()
    assert (checker.get_step(), checker.get_epoch()) == (3, 2)


def test_counting_starts_where_it_is_told():
    checker = ProgressChecker()
    checker.init_state(step=41, epoch=5)
    checker.update_step()
    assert (checker.get_step(), checker.get_epoch()) == (42, 5)
    checker.init_state()
    assert (checker.get_step(), checker.get_epoch()) == (1, 1)


# ---------------------------------------------------------------------- bars


def test_lines_tell_the_position_the_time_left_and_the_values():
    lines = drawn(LineBar(io.StringIO()), total=4).splitlines()
    assert len(lines) == 4
    for number, (share, line) in enumerate(zip(("25%", "50%", "75%", "100%"), lines, strict=True), start=1):
        pattern = rf"Epoch 1/2  {number}/4 \({share}\)  ETA \d:\d\d:\d\d  LR 1e-3  loss 0\.{number}0  samples/s [\d,]+"
        assert re.fullmatch(pattern, line), line


def test_lines_without_a_known_length_tell_the_batch():
    lines = drawn(LineBar(io.StringIO()), total=None, batches=2).splitlines()
    assert [line.split("  ")[1] for line in lines] == ["batch 1", "batch 2"]
    assert "ETA" not in lines[0]


def test_the_time_left_is_that_of_the_batches_to_come():
    bar = LineBar(io.StringIO()).open("Epoch 1", 10, describe)
    bar.began -= 3600.0  # as if the first batch had taken an hour
    bar.due = time.perf_counter()
    bar.advance(1, time.perf_counter())
    assert "1/10 (10%)  ETA 9:00:0" in bar.stream.getvalue()


def test_a_line_is_written_only_when_it_is_due():
    bar = LineBar(io.StringIO()).open("Epoch 1", 100, describe)
    for _ in range(50):
        bar.advance(1, time.perf_counter())
    assert bar.stream.getvalue() == ""
    bar.due = time.perf_counter()
    bar.advance(1, time.perf_counter())
    bar.advance(1, time.perf_counter())
    assert len(bar.stream.getvalue().splitlines()) == 1


def test_the_next_epoch_counts_anew():
    bar = LineBar(io.StringIO())
    drawn(bar, total=4)
    assert (bar.done, bar.samples) == (4, 32)
    bar.open("Epoch 2/2", 9, describe)
    assert (bar.done, bar.samples, bar.total) == (0, 0, 9)


def test_the_speed_is_in_samples():
    bar = SilentBar(io.StringIO()).open("Epoch 1", 2, describe)
    bar.began -= 10.0
    bar.advance(500, time.perf_counter())
    bar.advance(500, time.perf_counter())
    assert bar.speed == pytest.approx(100.0, rel=0.2)


def test_a_silent_bar_writes_nothing():
    bar = SilentBar(io.StringIO())
    assert drawn(bar, total=4) == ""
    bar.write("a line")
    assert bar.stream.getvalue() == ""
    assert bar.done == 4


def test_a_line_that_stays_is_written():
    bar = LineBar(io.StringIO())
    bar.write("Epoch 1/2  loss 0.5")
    assert bar.stream.getvalue() == "Epoch 1/2  loss 0.5\n"


def test_the_bar_of_a_terminal_shows_position_and_values():
    bar = TqdmBar(Terminal())
    shown = drawn(bar, total=4)
    assert "Epoch 1/2:  75%" in shown
    assert "3/4" in shown
    assert "loss=0.30" in shown
    assert "samples/s=" in shown
    assert "\n" not in shown.rstrip("\n")  # it is drawn over itself


def test_the_bar_of_a_terminal_is_wiped_at_the_epochs_end():
    shown = drawn(TqdmBar(Terminal()), total=4)
    assert shown.endswith("\r")
    assert shown.split("\r")[-2].strip() == ""


def test_a_line_above_the_bar_stays():
    bar = TqdmBar(Terminal())
    with bar.open("Epoch 1", 4, describe):
        bar.write("validated")
    assert "validated\n" in bar.stream.getvalue()
    bar.close()  # a second time does no harm


# ---------------------------------------------------------------------- which bar


@pytest.mark.parametrize(
    ("shown", "stream", "kind"),
    [
        (False, Terminal(), SilentBar),
        (False, io.StringIO(), SilentBar),
        (True, io.StringIO(), LineBar),
        (True, Terminal(), TqdmBar),
    ],
)
def test_the_bar_suits_the_output(shown, stream, kind):
    bar = make_bar(shown, stream)
    assert type(bar) is kind
    assert bar.stream is stream


def test_standard_error_is_taken_by_default(capsys):
    make_bar(True).write("seen")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "seen\n")


IN_A_TERMINAL = """
import time
from zae_engine.trainer.console.bar import make_bar
bar = make_bar(True).open("Epoch 1/1", 3, lambda batch, batches: {"Batch": "", "loss": f"{batch}.5"})
with bar:
    for _ in range(3):
        bar.due = time.perf_counter()
        bar.advance(4, time.perf_counter())
bar.write(type(bar).__name__)
"""


@pytest.mark.usefixtures("starts_processes")
def test_a_real_terminal_shows_the_bar(tmp_path):
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL], stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    shown = read_all(ours)
    assert child.wait() == 0, shown
    assert "TqdmBar" in shown
    assert "3/3" in shown
    assert "loss=3.5" in shown
    assert "\r" in shown


def read_all(descriptor):
    """Everything up to the end, which Linux tells by an error."""
    chunks = []
    try:
        while chunk := os.read(descriptor, 4096):
            chunks.append(chunk)
    except OSError:
        pass
    os.close(descriptor)
    return b"".join(chunks).decode()
