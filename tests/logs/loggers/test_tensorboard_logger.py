"""Event files, read back with TensorBoard's own reader."""

import json
import math
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.logs.logging_helpers import (
    CONFIG,
    START,
    info,
    odd_record,
    record,
    resume_after_kill,
    run_attempt,
    with_own,
)
from zae_engine.logs.loggers.tensorboard_logger import TensorBoardLogger

pytestmark = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def steps(folder, tag="train/loss"):
    return [event.step for event in read(folder).Scalars(tag)]


def test_every_record_is_read_back(tmp_path):
    folder = tmp_path / "a run"
    id, last = run_attempt(TensorBoardLogger(), info(folder), [record(step) for step in range(1, 6)])
    assert (id, last) == ("tensorboard", 0)
    kept = read(folder / "tensorboard")
    assert sorted(kept.Tags()["scalars"]) == ["epoch", "lr", "samples/s", "train/loss"]
    events = kept.Scalars("train/loss")
    assert [(event.step, event.wall_time) for event in events] == [(step, START + step) for step in range(1, 6)]
    assert [event.value for event in events] == pytest.approx([1 / step for step in range(1, 6)], rel=1e-6)


def test_texts_and_pictures_are_read_back(tmp_path):
    run_attempt(TensorBoardLogger(), info(tmp_path), [with_own(tmp_path, step) for step in (1, 2)])
    kept = read(tmp_path / "tensorboard")
    assert [event.tensor_proto.string_val[0].decode() for event in kept.Tensors("note")] == ["step 1", "step 2"]
    pictures = kept.Images("weights")
    assert [(event.step, event.width, event.height) for event in pictures] == [(1, 3, 2), (2, 3, 2)]
    assert pictures[0].encoded_image_string == (tmp_path / "weights.png").read_bytes()


def test_what_is_no_number_is_kept(tmp_path):
    run_attempt(TensorBoardLogger(), info(tmp_path), [odd_record(1), record(2, large=1e300)])
    kept = read(tmp_path / "tensorboard")
    assert math.isnan(kept.Scalars("grad_norm")[0].value)
    assert kept.Scalars("test/loss")[0].value == math.inf
    assert kept.Scalars("test/gain")[0].value == -math.inf
    assert kept.Scalars("large")[0].value == math.inf  # single precision


def test_the_configuration_is_text_and_hyperparameters(tmp_path):
    from tensorboard.plugins.hparams import metadata

    run_attempt(TensorBoardLogger(), info(tmp_path), [record(1)])
    kept = read(tmp_path / "tensorboard")
    assert json.loads(kept.Tensors("config")[0].tensor_proto.string_val[0]) == CONFIG
    content = kept.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert values["settings/lr"].number_value == 0.1
    assert values["settings/the optimizer/name"].string_value == "SGD"
    assert "note" not in values


@pytest.mark.parametrize(("status", "wanted"), [("done", 1), ("failed", 2), ("interrupted", 0)])
def test_the_end_is_noted(tmp_path, status, wanted):
    from tensorboard.plugins.hparams import metadata

    run_attempt(TensorBoardLogger(), info(tmp_path), [record(1)], status)
    content = read(tmp_path / "tensorboard").SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == wanted


def test_a_resumed_run_adds_a_file_and_nothing_twice(tmp_path):
    id, _ = run_attempt(TensorBoardLogger(), info(tmp_path), [record(step) for step in range(1, 6)], "interrupted")
    _, last = run_attempt(TensorBoardLogger(), info(tmp_path, id, 3), [record(step) for step in range(4, 9)])
    assert last == 5
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert steps(tmp_path / "tensorboard") == list(range(1, 9))
    _, last = run_attempt(TensorBoardLogger(), info(tmp_path, id, 20), [])  # the config of step 20 is no record
    assert run_attempt(TensorBoardLogger(), info(tmp_path, id, 8), []) == (id, 8)


def test_attempts_of_one_second_stay_in_order(tmp_path):
    for step in range(1, 4):
        run_attempt(TensorBoardLogger(), info(tmp_path, "tensorboard", step - 1), [record(step)])
    seconds = [path.name.split(".")[3] for path in (tmp_path / "tensorboard").iterdir()]
    assert len(set(seconds)) == 3
    assert steps(tmp_path / "tensorboard") == [1, 2, 3]


def test_a_new_run_takes_a_folder_of_its_own(tmp_path):
    ids = [run_attempt(TensorBoardLogger(), info(tmp_path), [record(step)])[0] for step in (1, 2, 3)]
    assert ids == ["tensorboard", "tensorboard-2", "tensorboard-3"]
    assert [steps(tmp_path / id) for id in ids] == [[1], [2], [3]]


def test_the_folder_may_be_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"log_dir": "all/digits", "filename_suffix": ".zae", "flush_secs": 5}
    id, _ = run_attempt(TensorBoardLogger(settings), info(tmp_path / "run"), [record(1)])
    assert id == str(tmp_path / "all" / "digits")
    assert next((tmp_path / "all" / "digits").iterdir()).name.endswith(".zae")
    assert run_attempt(TensorBoardLogger(settings), info(tmp_path / "run", id), [record(2)]) == (id, 1)


def test_the_summary_is_text(tmp_path):
    logger = TensorBoardLogger()
    logger.start(info(tmp_path))
    logger.log(record(3))
    logger.summarize({"best": {"test_loss": 0.5}})
    logger.finish("done")
    event = read(tmp_path / "tensorboard").Tensors("summary")[0]
    assert (event.step, json.loads(event.tensor_proto.string_val[0])) == (3, {"best": {"test_loss": 0.5}})


def test_the_client_may_be_opened_by_the_user(tmp_path):
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def open_client(settings):
        return EventFileWriter(settings["log_dir"], filename_suffix=".mine")

    logger = TensorBoardLogger({}, open_client)
    run_attempt(logger, info(tmp_path), [record(1)])
    assert isinstance(logger.client, EventFileWriter)
    assert next((tmp_path / "tensorboard").iterdir()).name.endswith(".mine")


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="no setting 'logdir'; did you mean 'log_dir'"):
        TensorBoardLogger({"logdir": "x"}).check()
    with pytest.raises(TypeError, match="log_dir=None of the tensorboard logger is no path"):
        TensorBoardLogger({"log_dir": None}).check()
    with pytest.raises(ValueError, match="flush_secs=0 of the tensorboard logger is no positive number"):
        TensorBoardLogger({"flush_secs": 0}).check()


@pytest.mark.usefixtures("starts_processes")
def test_torch_is_not_needed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.logs.logging_helpers import info, record, run_attempt\n"
        "from zae_engine.logs.loggers.tensorboard_logger import TensorBoardLogger\n"
        f"run_attempt(TensorBoardLogger(), info(Path({str(tmp_path)!r})), [record(1)])\n"
        "print([name for name in ('torch', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_killed_run_goes_on(nursery, tmp_path):
    id, last = resume_after_kill(nursery, "tensorboard", tmp_path / "a run")
    assert id == "tensorboard"
    assert 10 <= last < 60
    assert steps(tmp_path / "a run" / "tensorboard") == list(range(1, 61))
