"""What came out of a run, in a file and in a few lines."""

import json

import pytest

import zae_engine
from tests.logs.digits_run import train
from zae_engine.logs.history_file import HistoryFile
from zae_engine.logs.listing import without_entry
from zae_engine.logs.reading import RunFolderError, read_run
from zae_engine.logs.summary import advice, duration, effort_lines, in_units, shares_of, summarize, write_summary

PLAIN = {"num_workers": 0, "pin_memory": False, "prefetch_factor": None, "persistent_workers": False}
BUSY = {"num_workers": 4, "pin_memory": True, "prefetch_factor": 2, "persistent_workers": True}


def point(step, **seconds):
    spent = {"all": 50.0, "data": 0.0, "evaluation": 0.0, "saving": 0.0, "logging": 0.0} | seconds
    return {"kind": "point", "step": step, "epoch": 1, "lr": 0.1, "time": 1000.0 + step, "train": {"loss": 1.0},
            "samples": 3200, "seconds": spent}  # fmt: skip


ATTEMPT = {"kind": "attempt", "attempt": 1, "after": 0, "step": 0, "from": None, "time": 1000.0}
ROW = {"kind": "row", "number": 0, "epoch": 1, "step": 100, "lr": 0.1, "train_loss": 1.0, "test_loss": 0.1234567}
END = {"kind": "end", "status": "done", "reason": "", "step": 100, "time": 1100.0,
       "memory": {"host": 912_345_678, "device": 3_210_000_000}, "loader": {**PLAIN, "cores": 8},
       "best": {"name": "loss", "mode": "min", "value": 0.1234567, "epoch": 1}}  # fmt: skip
WAITED = [point(50, data=30.0), point(100, data=11.0, evaluation=10.0, saving=1.0)]


def summary(tmp_path, *lines):
    HistoryFile(tmp_path / "history.jsonl").append(list(lines))
    return summarize(read_run(tmp_path))


@pytest.fixture(scope="module")
def killed(nursery, tmp_path_factory):
    """A run that was killed in the middle of its 12th step, and went on."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert nursery.run("-m", "tests.logs.digits_run", folder, 12).returncode == -9
    return train(folder)


def test_a_run_that_was_killed_is_summarized_whole(killed):
    told = write_summary(killed.save_path)
    assert without_entry(json.loads((killed.save_path / "summary.json").read_text())) == told
    best = killed.history.best("test_loss")
    wanted = {"name": "test_loss", "mode": "min", "value": best["test_loss"], "epoch": best["epoch"]}
    assert told["best"] == wanted | {"step": best["step"], "saved": "model.safetensors"}
    assert (told["status"], told["epochs"], told["steps"], told["attempts"]) == ("done", 3, 30, 2)
    assert told["versions"]["zae-engine"] == zae_engine.__version__
    assert (told["device"], told["processes"], told["run"]) == ("cpu", 1, "digits")


def test_a_summary_in_words(tmp_path):
    told = summary(tmp_path, ATTEMPT, *WAITED, ROW, END)
    assert told["shares"] == {"compute": 0.48, "data": 0.41, "evaluation": 0.1, "saving": 0.01, "logging": 0.0}
    assert (told["samples"], told["samples_per_second"], told["seconds"]) == (6400, 64.0, 100.0)
    assert effort_lines(told) == [
        "64 samples/s; time: computing 48%, waiting for data 41%, evaluation 10%, saving 1%.",
        "Peak memory: 912 MB of this process, 3.2 GB of the device.",
        "41% of the time went to waiting for data. The loader has num_workers=0, pin_memory=False, "
        "persistent_workers=False. Try num_workers=2 (of 8 cores) and persistent_workers=True, and measure again.",
    ]


def test_a_run_without_points_and_end_is_summarized(tmp_path):
    told = summary(tmp_path, ATTEMPT, {**ROW, "test_loss": "nan"})
    unknown = ("best", "samples", "samples_per_second", "shares", "loader", "advice", "versions", "reason", "git")
    assert {name: told[name] for name in unknown} == dict.fromkeys(unknown)
    assert (told["status"], told["memory"]) == ("broken off", {"host": None, "device": None})
    assert told["never_finite"] == "test_loss"
    assert effort_lines(told) == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [("failed", "ValueError: no\nmore"), ("interrupted", "SIGTERM"), ("done", "it is good enough.")],
)
def test_the_reason_is_told(tmp_path, status, reason):
    told = summary(tmp_path, ATTEMPT, ROW, {**END, "status": status, "reason": reason})
    assert (told["status"], told["reason"]) == (status, reason)


def test_no_run_is_no_summary(tmp_path):
    with pytest.raises(RunFolderError, match="is no run folder"):
        write_summary(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("loader", "cores", "device", "tries"),
    [
        (PLAIN, 8, "cuda", "num_workers=2 (of 8 cores), persistent_workers=True and pin_memory=True"),
        (PLAIN, None, "cpu", "num_workers=2 and persistent_workers=True"),
        (PLAIN, 1, "cpu", "cheaper transforms or data that are stored as they are used, since no core is free"),
        (BUSY, 16, "cuda", "num_workers=8 (of 16 cores) and prefetch_factor=4"),
        ({**BUSY, "prefetch_factor": 8}, 4, "cuda", "cheaper transforms or data that are stored as they are used, "
         "since no core is free"),
        ({**BUSY, "persistent_workers": False}, 6, None, "num_workers=5 (of 6 cores), prefetch_factor=4 and "
         "persistent_workers=True"),
    ],
)  # fmt: skip
def test_the_advice_fits_the_loader(loader, cores, device, tries):
    said = advice(0.41, loader, cores, device)
    assert f"Try {tries}, and measure again." in said
    assert f"num_workers={loader['num_workers']}" in said
    assert ("may have been computing" in said) == (device == "cuda")


def test_the_advice_for_other_loaders_and_short_waits():
    assert advice(0.41, None).endswith(
        "The loader is no DataLoader; let it make its batches ahead, in processes of its own."
    )
    assert advice(0.1, PLAIN, 8) is None
    assert advice(0.41, PLAIN, 8, seconds=1.0) is None


def test_shares_of_nothing_are_unknown():
    assert shares_of({"compute": 0.0, "data": 0.0}) is None
    assert sum(shares_of({"compute": 1.0, "data": 2.0}).values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.84, "0.8 s"), (12.4, "12 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (86_400 * 3, "3 d")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(999, "999 B"), (1500, "1.5 kB"), (912_345_678, "912 MB"), (3.21e9, "3.2 GB"), (2e12, "2,000.0 GB")],
)
def test_sizes_in_words(size, words):
    assert in_units(size) == words
