"""Run folders that older versions wrote load, go on, and are read. They are kept as they are; see ``make``."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import assert_equal, weights
from tests.written_before.comparing import FOLDERS, HERE, assert_close, assert_ends_alike, form_of, found, now, on, then
from tests.written_before.problem import FORMS, build, run, validation
from zae_engine.cli import main
from zae_engine.trainer import CheckpointError, read_history

SEVERAL_CHECKPOINTS = [folder for folder in on(1) if len([*HERE.glob(f"{folder}/run/checkpoints/*")]) > 1]
MACHINES = (b"/tmp/", b"/home/", b"/root/", b"/opt/", b"/work/", b"/Users/", b"C:\\\\")


@pytest.fixture
def kept(tmp_path):
    """A copy of a folder, since a run that goes on writes into it."""
    return lambda folder: Path(shutil.copytree(HERE / folder, tmp_path / Path(folder).name))


@pytest.fixture
def zae(capsys):
    """Call the command line; it has to end well, without a complaint."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(tuple(map(str, arguments)))
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return out

    return call


def file_of(folder, stem):
    """The weights in a folder, read without the package."""
    (path,) = Path(folder).glob(f"{stem}.*")
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def steps_of(trainer):
    return trainer.progress_checker.get_step() - 1


def test_every_form_is_kept():
    assert {Path(folder).name for folder in FOLDERS} == set(FORMS)


# ---------------------------------------------------------------------- a run that goes on


@pytest.mark.parametrize("folder", [folder for folder in on(1) if not folder.endswith("/stopped")])
def test_it_ends_as_if_it_had_never_been_interrupted(folder, kept, tmp_path):
    form = form_of(folder)
    resumed = run(build(form, kept(folder) / "run"), form, resume="auto")
    assert_ends_alike(found(resumed, run(build(form, tmp_path / "whole"), form)), folder)


def test_a_run_that_was_stopped_within_an_epoch_goes_on_with_the_next(kept, tmp_path):
    form = form_of("stopped")
    resumed = now(run(build(form, kept("v0_8/stopped") / "run"), form, resume="auto"))
    whole = build(form, tmp_path)
    run(whole, form, form.cut)
    whole = now(run(whole, form, {"max_steps": 9}))
    assert resumed["steps"] == whole["steps"] == 17
    same = whole["losses"]["train"][:8] == then("v0_8/stopped")["losses"]["train"][:8]  # to the bit, on this machine
    assert_close(resumed["losses"], whole["losses"], 0 if same else 1e-3)
    assert_close(resumed["weights"], whole["weights"], 0 if same else 1e-3)


@pytest.mark.parametrize("folder", SEVERAL_CHECKPOINTS)
def test_an_earlier_checkpoint_ends_there_too(folder, kept, tmp_path):
    form, checkpoints = form_of(folder), kept(folder) / "run/checkpoints"
    resumed = run(build(form, tmp_path / "again"), form, resume=min(checkpoints.iterdir()))
    assert_ends_alike(found(resumed, run(build(form, tmp_path / "whole"), form)), folder)


@pytest.mark.parametrize("folder", [folder for folder in on(2) if form_of(folder).options.get("shards")])
def test_shards_of_two_processes_are_gone_on_with_by_one(folder, kept):
    form, wanted = form_of(folder), then(folder)
    got = now(run(build(form, kept(folder) / "run"), form, resume="auto"))
    assert_close(got["weights"], wanted["weights"], 1e-9)
    assert_close(got["losses"], wanted["losses"], 1e-9)


def test_two_processes_are_gone_on_with_by_one(kept):
    form, wanted = form_of("two"), then("v0_8/two")
    trainer = run(build(form, kept("v0_8/two") / "run"), form, resume="auto")
    losses = list(trainer.get_loss_history("train"))
    assert losses[:6] == wanted["losses"]["train"][:6]
    assert len(losses) == steps_of(trainer) == wanted["steps"]
    assert sum(losses[-5:]) < sum(losses[:5])  # what it draws differs from what two processes draw


def test_the_folder_of_a_run_that_goes_on(kept):
    folder = kept("v0_8/interrupted") / "run"
    before = (folder / "history.jsonl").read_bytes()
    run(build(form_of("interrupted"), folder), form_of("interrupted"), resume="auto").close_loggers()
    assert (folder / "history.jsonl").read_bytes().startswith(before)
    assert [line["step"] for line in read_history(folder) if line["kind"] == "step"] == [*range(1, 22)]
    assert [each["attempt"] for each in json.loads((folder / "run.json").read_text())["attempts"]] == [1, 2]
    with open(folder / "metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert steps[-1] == 21
    assert json.loads((folder / "summary.json").read_text())["steps"] == 21


def test_a_run_that_was_done_is_done(kept):
    folder, form = kept("v0_8/finished") / "run", form_of("finished")
    before = (folder / "history.jsonl").read_bytes()
    trainer = run(build(form, folder), form, form.cut, resume="auto")
    assert steps_of(trainer) == 15
    assert_equal(weights(trainer.model), file_of(folder / "checkpoints/000003-step-15", "model"))
    assert (folder / "history.jsonl").read_bytes() == before


def test_other_settings_are_refused(kept):
    trainer = build(form_of("interrupted"), kept("v0_8/interrupted") / "run", gradient_clip=0.25)
    with pytest.raises(CheckpointError, match=r"gradient_clip: 0\.5 in the checkpoint, 0\.25 now"):
        run(trainer, form_of("interrupted"), resume="auto")


# ---------------------------------------------------------------------- states and weights


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_state_is_that_of_the_files(folder, kept):
    trainer = build(form_of(folder), kept(folder) / "run")
    path = trainer.load_state()
    assert path == max(path.parent.iterdir())
    assert_equal(weights(trainer.model), file_of(path, "model"))
    assert steps_of(trainer) == int(path.name.rpartition("-")[2])


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_best_weights_are_those_of_the_folder(folder, kept):
    copy = kept(folder) / "run"
    trainer, best = build(form_of(folder), copy), file_of(copy, "model")
    trainer.load_state()
    trainer.apply_weights()
    assert_equal(weights(trainer.model), best)
    other = build(form_of(folder), copy.with_name("other"))
    other.apply_weights(next(copy.glob("model.*")))
    assert_equal(weights(other.model), best)


def test_the_best_state_is_evaluated(kept):
    trainer = build(form_of("finished"), kept("v0_8/finished") / "run", mode="test")
    assert trainer.load_state("best").name == "000002-step-10"
    trainer.run(loader=validation(form_of("finished")))
    row = then("v0_8/finished")["rows"][1]
    assert trainer.test_metrics["loss"] == pytest.approx(row["test_loss"], rel=1e-5)
    assert trainer.test_metrics["acc"] == row["test_acc"]


@pytest.mark.parametrize("name", ["saved.safetensors", "saved.ckpt"])
def test_weights_of_save_model(name, tmp_path):
    trainer = build(FORMS["finished"], tmp_path)
    trainer.apply_weights(HERE / "v0_8/finished" / name)
    assert_equal(weights(trainer.model), then("v0_8/finished")["weights"])


# ---------------------------------------------------------------------- what reads them


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_command_line_reads_the_checkpoints(folder, zae):
    path = HERE / folder / "run"
    count = len([*(path / "checkpoints").iterdir()])
    assert zae("checkpoint", "verify", path).endswith(f"{count} verified, 0 damaged\n")
    assert [line.split()[-1] for line in zae("checkpoint", "ls", path).splitlines()] == ["STATE", *["whole"] * count]
    assert "\nmodel: 8 tensors, 180 numbers" in zae("checkpoint", "show", path)
    assert zae("checkpoint", "diff", path, path) == "0 differences\n"


def test_the_command_line_lists_the_runs(zae):
    rows = {row["name"]: row for row in json.loads(zae("runs", HERE / "v0_8", "--json"))}
    assert set(rows) == {f"{name}/run" for name in FORMS}
    assert rows["interrupted/run"]["status"] == "interrupted"
    assert rows["interrupted/run"]["steps"] == 13
    assert rows["finished/run"]["status"] == "done"
    assert rows["finished/run"]["best_name"] == "test_acc"
    assert rows["finished/run"]["best"] == then("v0_8/finished")["rows"][1]["test_acc"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_history_is_read(folder):
    lines = read_history(HERE / folder / "run")
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [*range(1, len(steps) + 1)]
    assert [line["loss"] for line in steps] == then(folder)["losses"]["train"][: len(steps)]
    assert lines[-1]["kind"] == "end"
    assert lines[-1]["step"] == len(steps)


def test_a_page_is_made_of_them(zae, tmp_path):
    zae("report", HERE / "v0_8", "-o", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert all(f"{name}/run" in text for name in FORMS)


def test_they_are_given_to_loggers(zae, kept):
    folder = kept("v0_8/interrupted") / "run"
    assert "csv got 1 records, up to step 13" in zae("logs", "sync", folder)
    assert "10 records of run are in csv" in zae("logs", "export", folder, "--to", "csv")


# ---------------------------------------------------------------------- the files themselves


def test_nothing_of_a_machine_is_in_them():
    files = [path for path in HERE.glob("v*/**/*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        assert [word for word in MACHINES if word in content] == [], path
    assert 0 < sum(path.stat().st_size for path in files if path.is_relative_to(HERE / "v0_8")) < 450_000
