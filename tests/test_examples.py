"""The examples, started as a user starts them, from a folder with a space in its name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zae_engine.logs.loggers.wandb_file import read_steps
from zae_engine.logs.merging import records_of
from zae_engine.logs.reading import read_run

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[1]


def start(command, folder, **variables):
    folder.mkdir()
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def launcher(config):
    accelerate = shutil.which("accelerate", path=str(Path(sys.executable).parent))
    return [accelerate, "launch", "--config_file", str(ROOT / "accelerate_configs" / config)]


@pytest.mark.parametrize("way", ["python", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_digits_reaches_97_percent_and_draws(way, tmp_path):
    command = [sys.executable] if way == "python" else launcher("cpu.yaml")
    output = start([*command, str(ROOT / "examples" / "digits.py")], tmp_path / "a folder")
    assert float(re.search(r"held-out accuracy ([\d.]+)%", output)[1]) >= 97
    assert (tmp_path / "a folder" / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert "ETA" not in output or "Epoch" in output  # plain lines, no bar, in a file


def test_char_lm_learns_more_than_letter_frequencies(tmp_path):
    output = start([sys.executable, str(ROOT / "examples" / "char_lm.py"), "--steps", "60"], tmp_path / "a folder")
    figures = [float(v) for v in re.findall(r"perplexity\D*([\d.]+)", output)]
    unigram, model = max(figures), min(figures)
    assert model < 0.8 * unigram


@pytest.mark.slow
def test_digits_prints_the_same_on_one_two_and_three_processes(tmp_path):
    found = set()
    for processes in (1, 2, 3):
        command = [*launcher("cpu_2.yaml"), "--num_processes", str(processes), "--main_process_port", "0"]
        output = start([*command, str(ROOT / "examples" / "digits.py")], tmp_path / f"on {processes}")
        found.add(re.search(r"^last epoch: .*\nbest epoch: .*loss [\d.]+$", output, re.MULTILINE)[0])
        assert len(re.findall("^best epoch", output, re.MULTILINE)) == 1
    assert len(found) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.slow
def test_resume_is_killed_three_times_and_ends_as_if_left_alone(tmp_path):
    output = start([sys.executable, str(ROOT / "examples" / "resume.py")], tmp_path / "a folder")
    assert "largest difference: 0, of the final state: 0\n" in output
    assert "killed in the steps (43, 93, 144), taken up after" in output
    assert (tmp_path / "a folder" / "resume_runs" / "resume.png").read_bytes().startswith(b"\x89PNG")


def test_watch_leaves_one_run_for_each_logger_and_a_picture(tmp_path):
    pytest.importorskip("wandb")
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    output = start([sys.executable, str(ROOT / "examples" / "watch.py")], tmp_path / "a folder", WANDB_MODE="offline")
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


def test_watch_says_what_to_install(tmp_path):
    code = (
        "import runpy, sys; sys.argv = ['watch.py']; sys.modules['wandb'] = sys.modules['tensorboard'] = None;"
        f"runpy.run_path({str(ROOT / 'examples' / 'watch.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'zae-engine[examples,tensorboard,wandb,report]'" in done.stderr
    assert not (tmp_path / "runs").exists()
