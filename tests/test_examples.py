"""The examples, started as a user starts them, from a folder with a space in its name."""

import re
import sys
from pathlib import Path

import pytest

from tests.launch.processes import ACCELERATE
from tests.nurse import environment
from zae_engine.logs.loggers.wandb_file import read_steps
from zae_engine.logs.merging import records_of
from zae_engine.logs.reading import read_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def start(nursery, tmp_path):
    """Starts an example, and returns what it has printed; `words` come before its name."""

    def call(example, *options, words=(), folder="a folder", **variables):
        (tmp_path / folder).mkdir()
        settings = {"cwd": tmp_path / folder, "env": environment() | variables, "timeout": 400, "without": ()}
        done = nursery.run(*words, ROOT / "examples" / example, *options, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return call


def launcher(config):
    return [*ACCELERATE, "--config_file", ROOT / "accelerate_configs" / config]


@pytest.mark.parametrize("way", ["python", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_digits_reaches_97_percent_and_draws(start, way, tmp_path):
    output = start("digits.py", words=[] if way == "python" else launcher("cpu.yaml"))
    assert float(re.search(r"held-out accuracy ([\d.]+)%", output)[1]) >= 97
    assert (tmp_path / "a folder" / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert "ETA" not in output or "Epoch" in output  # plain lines, no bar, in a file


def test_char_lm_learns_more_than_letter_frequencies(start):
    output = start("char_lm.py", "--steps", "60")
    figures = [float(v) for v in re.findall(r"perplexity\D*([\d.]+)", output)]
    unigram, model = max(figures), min(figures)
    assert model < 0.8 * unigram


@pytest.mark.slow
def test_digits_prints_the_same_on_one_two_and_three_processes(start):
    found = set()
    for processes in (1, 2, 3):
        command = [*launcher("cpu_2.yaml"), "--num_processes", processes, "--main_process_port", "0"]
        output = start("digits.py", words=command, folder=f"on {processes}")
        found.add(re.search(r"^last epoch: .*\nbest epoch: .*loss [\d.]+$", output, re.MULTILINE)[0])
        assert len(re.findall("^best epoch", output, re.MULTILINE)) == 1
    assert len(found) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.slow
def test_resume_is_killed_three_times_and_ends_as_if_left_alone(start, tmp_path):
    output = start("resume.py")
    assert "largest difference: 0, of the final state: 0\n" in output
    assert "killed in the steps (43, 93, 144), taken up after" in output
    assert (tmp_path / "a folder" / "resume_runs" / "resume.png").read_bytes().startswith(b"\x89PNG")


def test_watch_leaves_one_run_for_each_logger_and_a_picture(start, tmp_path):
    pytest.importorskip("wandb")
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    output = start("watch.py", WANDB_MODE="offline")
    run = tmp_path / "a folder" / "runs" / "watch"
    last = read_run(run).step
    (kept,) = run.glob("wandb/offline-run-*/*.wandb")
    assert [step for step, values in read_steps(kept) if "train/loss" in values] == records(run)
    (events,) = run.glob("tensorboard/*.tfevents.*")
    tags = {value.tag for event in loading.LegacyEventFileLoader(str(events)).Load() for value in event.summary.value}
    assert {"train/loss", "train/grad_norm", "test/acc", "lr", "samples/s"} <= tags
    assert records(run)[-1] == last
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert f"tensorboard --logdir {Path('runs', 'watch', 'tensorboard')}\n" in output


def records(run):
    return [record.step for record in records_of(run)]


def test_watch_says_what_to_install(nursery, tmp_path):
    done = nursery.run(ROOT / "examples" / "watch.py", cwd=tmp_path, without=("wandb", "tensorboard"))
    assert done.returncode == 1
    assert "pip install 'zae-engine[examples,tensorboard,wandb,report]'" in done.stderr
    assert not (tmp_path / "runs").exists()
