"""What a run folder holds, what is loaded from it, and what is refused."""

import json
import os
import pickle
import re
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers import PlainTrainer, assert_equal, loader, make, mlp, weights
from tests.trainer.addons.resumed import Drawing, broken_off, build, first_difference, lines_of, outcome
from zae_engine.checkpoint.disk import digest
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import committed, seal
from zae_engine.logs.history_file import read_history
from zae_engine.trainer.addons import EarlyStoppingAddon, StateManagerAddon

Managed = PlainTrainer.add_on(StateManagerAddon)


def managed(folder, kind=PlainTrainer, **options):
    return make(kind.add_on(StateManagerAddon), save_path=folder, **options)


def steps_saved(folder):
    return [checkpoint.step for checkpoint in committed(folder / "checkpoints")]


def newest(folder):
    return committed(folder / "checkpoints")[-1].path


# ---------------------------------------------------------------------- neutral


@pytest.mark.parametrize("seeded", [True, False])
def test_the_model_is_the_one_without_it(tmp_path, seeded):
    options = {"kind": Drawing, "seeded_samples": seeded, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)}
    outcomes = []
    for add_ons in ((), (StateManagerAddon,)):
        trainer = build(tmp_path / "run", add_ons=add_ons, **options)
        trainer.run(2, loader(21, 5, shuffle=True), loader(11, 5), valid_every="3st")
        outcomes.append(outcome(trainer))
    assert first_difference(*outcomes) is None
    assert len(steps_saved(tmp_path / "run")) == 10


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    managed(tmp_path).run(1, loader())
    first = torch.rand(())
    torch.manual_seed(3)
    managed(tmp_path).run(1, loader(), resume="auto")
    assert torch.rand(()) == first


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "got save_path=None; give the folder of this run: save_path='runs/first'"),
        ({"save_pth": "x"}, "got save_path=None; write save_path= for save_pth="),
        ({"save_path": ""}, "got save_path=''; give the folder"),
        ({"save_path": 3}, "got save_path=3; give the folder"),
        ({"save_path": "x", "save_evry": 1}, "has no option 'save_evry'; did you mean 'save_every'"),
        ({"save_path": "x", "save_format": "safetenosr"}, "did you mean 'safetensor'?"),
        ({"save_path": "x", "save_every": "5 stepps"}, "save_every='5 stepps' is not a duration; write '3ep'"),
        ({"save_path": "x", "save_every": 0}, "save_every=0 is not a duration"),
        ({"save_path": "x", "keep_last": 0}, "keep_last=0 is not accepted; write a whole number of at least 1"),
        ({"save_path": "x", "keep_best": -1}, "keep_best=-1 is not accepted"),
        ({"save_path": "x", "save_async": "no"}, "save_async='no' is not accepted; write True or False"),
        ({"save_path": "x", "save_required": 1}, "save_required=1 is not accepted; write True or False"),
    ],
)
def test_a_wrong_option_is_told(options, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        make(Managed, **options)


@pytest.mark.parametrize(
    ("resume", "words"),
    [
        ("atuo", "resume='atuo' is no checkpoint; did you mean 'auto'?"),
        (True, "resume=True is not accepted; write 'auto', 'last', 'best' or a checkpoint's path"),
        ("", "resume='' is not accepted"),
        ("last", "resume='last': "),
        ("runs/elsewhere", "there is no 'runs/elsewhere'"),
    ],
)
def test_a_wrong_resume_is_told_before_anything_is_trained(tmp_path, resume, words):
    trainer = managed(tmp_path / "run")
    with pytest.raises((TypeError, ValueError, CheckpointError), match=re.escape(words)):
        trainer.run(1, loader(), resume=resume)
    assert trainer.progress_checker.get_step() == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_path_that_is_nearly_one_is_told(tmp_path):
    managed(tmp_path / "first").run(1, loader())
    with pytest.raises(CheckpointError, match=r"did you mean '.*first'\?"):
        managed(tmp_path / "second").run(1, loader(), resume=tmp_path / "frist")


def test_resume_on_a_trainer_without_it_names_the_add_on():
    with pytest.raises(TypeError, match=r"write add_on\(StateManagerAddon\)"):
        make().run(1, loader(), resume="auto")


def test_a_misspelt_resume_is_told(tmp_path):
    with pytest.raises(TypeError, match="has no option 'resum'; did you mean 'resume'"):
        managed(tmp_path).run(1, loader(), resum="auto")


def test_resume_in_mode_test_names_load_state(tmp_path):
    with pytest.raises(ValueError, match=r"load_state\('best'\)"):
        managed(tmp_path, mode="test").run(1, loader(), resume="auto")


def test_a_path_that_is_a_file_is_told(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        managed(tmp_path / "run").run(1, loader())
    assert (tmp_path / "run").read_text() == "mine"


def test_a_path_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made: Not a directory"):
        managed(tmp_path / "file" / "run").run(1, loader())


def test_a_path_with_a_space_and_other_letters(tmp_path):
    folder = tmp_path / "ein Lauf ü"
    managed(folder).run(1, loader())
    trainer = managed(str(folder))
    trainer.run(2, loader(), resume="auto")
    assert steps_saved(folder) == [6, 12]


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = managed("run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    trainer.run(1, loader())
    assert steps_saved(tmp_path / "run") == [6]


def test_a_folder_of_an_earlier_run_is_not_written_into(tmp_path):
    managed(tmp_path).run(1, loader())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"write run\(..., resume='auto'\) to go on with it"):
        managed(tmp_path).run(1, loader())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_path_of_elsewhere_is_not_taken_into_a_folder_with_a_run(tmp_path):
    for name in ("first", "second"):
        managed(tmp_path / name).run(1, loader())
    with pytest.raises(CheckpointError, match="has the checkpoints of an earlier run"):
        managed(tmp_path / "second").run(2, loader(), resume=tmp_path / "first")


# ---------------------------------------------------------------------- when it saves, and what is kept


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [24, 30]),
        ({"save_every": "2ep"}, [24, 30]),
        ({"save_every": 3, "keep_last": None}, [18, 30]),
        ({"save_every": "7st", "keep_last": None, "keep_best": 0}, [7, 14, 21, 28, 30]),
        ({"save_every": "12st", "keep_last": None}, [12, 24, 30]),
        ({"keep_last": 1, "keep_best": 0}, [30]),
        ({"save_every": "1h"}, [30]),
        ({"monitor_mode": "max"}, [6, 24, 30]),
        ({"monitor_mode": "max", "keep_best": 2}, [6, 12, 24, 30]),
        ({"monitor_mode": "max", "keep_best": 0, "keep_last": 1}, [6, 30]),
        ({"save_async": False}, [24, 30]),
    ],
)
def test_how_often_is_saved_and_how_many_are_kept(tmp_path, options, steps):
    managed(tmp_path, **options).run(5, loader())
    assert steps_saved(tmp_path) == steps
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []


class Slow(PlainTrainer):
    def train_step(self, batch):
        time.sleep(0.15)
        return super().train_step(batch)


def test_saving_by_the_clock(tmp_path):
    managed(tmp_path, Slow, save_every="1s", keep_last=None).run(3, loader())
    first, *_, last = steps_saved(tmp_path)
    assert 6 <= first <= 15
    assert last == 18


class Asking(PlainTrainer):
    def train_step(self, batch):
        if self.progress_checker.get_step() == 4:
            assert self.save_state() is None
        return super().train_step(batch)


def test_a_step_may_ask_for_a_save(tmp_path):
    managed(tmp_path, Asking, save_every="9ep", keep_last=None).run(1, loader())
    assert steps_saved(tmp_path) == [4, 6]


def test_save_state_before_and_after_a_run(tmp_path):
    trainer = managed(tmp_path, keep_last=None)
    assert trainer.save_state().name == "000001-step-0"
    trainer.run(1, loader(), resume="auto")
    assert trainer.save_state().name == "000003-step-6"
    again = managed(tmp_path)
    again.run(1, loader(), resume="auto")
    assert_equal(weights(again.model), weights(trainer.model))


def test_a_run_from_what_was_saved_before_any_run(tmp_path):
    managed(tmp_path / "one").save_state()
    again, plain = managed(tmp_path / "one"), make()
    again.run(1, loader(), resume="auto")
    plain.run(1, loader())
    assert_equal(weights(again.model), weights(plain.model))


# ---------------------------------------------------------------------- weights for everybody


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x))[:, :3]


MODELS = {"plain": mlp, "tied": Tied, "compiled": lambda: torch.compile(mlp(), backend="eager")}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("save_format", ["safetensors", "safetensor", "ckpt"])
def test_torch_and_safetensors_alone_load_the_weights(tmp_path, save_format, name):
    torch.manual_seed(0)
    trainer = managed(tmp_path, model=MODELS[name](), save_format=save_format)
    trainer.run(2, loader())
    fresh = {"plain": mlp, "tied": Tied, "compiled": mlp}[name]()
    for folder in (tmp_path, newest(tmp_path)):
        if save_format == "ckpt":
            fresh.load_state_dict(torch.load(folder / "model.ckpt", weights_only=True), strict=name != "tied")
        else:
            safetensors.torch.load_model(fresh, folder / "model.safetensors")
        own = getattr(trainer.model, "_orig_mod", trainer.model)
        assert_equal(weights(fresh), weights(own))


class Worsening(PlainTrainer):
    """Is best in its second epoch."""

    def metric_on_epoch_end(self):
        return {"off": abs(self.progress_checker.get_epoch() - 2.0)}


def worsening(folder, **options):
    return managed(folder, Worsening, monitor="off", monitor_mode="min", **options)


@pytest.mark.parametrize("save_every", ["1ep", "4ep", "4st"])
def test_the_best_weights_lie_in_the_run_folder(tmp_path, save_every):
    trainer = worsening(tmp_path, save_every=save_every)
    trainer.run(4, loader(shuffle=True))
    plain = make()
    plain.run(2, loader(shuffle=True))
    best = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert_equal(best, weights(plain.model))
    again = worsening(tmp_path)
    again.run(4, loader(shuffle=True), resume="auto")
    assert again.weight_buffer["epoch"] == [1]
    again.apply_weights()
    assert_equal(weights(again.model), best)


class Extra(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_extra_states_of_the_best_weights_come_back(tmp_path):
    worsening(tmp_path, model=Extra(8, 3), save_every="4ep").run(4, loader())
    again = worsening(tmp_path, model=Extra(8, 3))
    again.run(4, loader(), resume="auto")
    assert again.model.calls == 24
    again.apply_weights()
    assert again.model.calls == 12


# ---------------------------------------------------------------------- going on


def test_a_run_that_is_done_is_loaded_and_the_script_goes_on(tmp_path):
    first = managed(tmp_path)
    first.run(2, loader(), resume="auto")
    again = managed(tmp_path, log_bar=True)
    train = loader()
    history = again.run(2, train, resume="auto")
    assert len(history) == 2
    assert again.loader is train
    assert_equal(weights(again.model), weights(first.model))
    assert again.get_loss_history() == first.get_loss_history()
    again.apply_weights()
    again.run(1, train)
    assert again.history.column("step") == [6, 12, 18]


def test_what_is_said(tmp_path, capfd):
    managed(tmp_path, save_every="4st").run(1, loader(), resume="auto")
    for epochs in (2, 2):
        managed(tmp_path, log_bar=True).run(epochs, loader(), resume="auto")
    said = capfd.readouterr().err
    assert "n_epoch: 1 in the checkpoint, 2 now" in said
    assert "Going on from 000002-step-6: epoch 2, step 7." in said
    assert "The run is done: 2 epochs, 12 steps; its state is loaded." in said


def test_more_epochs_of_a_run_that_is_done(tmp_path):
    managed(tmp_path / "short").run(3, loader(shuffle=True), resume="auto")
    longer, whole = managed(tmp_path / "short"), managed(tmp_path / "whole")
    for trainer in (longer, whole):
        trainer.run(5, loader(shuffle=True), resume="auto")
    assert first_difference(outcome(longer), outcome(whole)) is None
    assert first_difference(lines_of(tmp_path / "short"), lines_of(tmp_path / "whole")) is None


def test_a_run_that_was_stopped_for_good_is_done(tmp_path):
    kind = PlainTrainer.add_on(EarlyStoppingAddon, StateManagerAddon)
    first, again = (make(kind, save_path=tmp_path, patience=1, min_delta=10.0) for _ in range(2))
    for trainer in (first, again):
        trainer.run(9, loader(), resume="auto")
    assert again.stop_reason == first.stop_reason == "loss has not got better in 1 evaluation"
    assert len(again.history) == 2


def test_the_steps_between_two_calls_of_a_script_hold(tmp_path):
    def script(folder):
        trainer = managed(folder, save_every="2st", keep_last=None)
        trainer.run(1, loader(shuffle=True), resume="auto")
        trainer.optimizer.param_groups[0]["lr"] *= 0.5
        trainer.run(1, loader(shuffle=True, generator=torch.Generator().manual_seed(8)), resume="auto")
        return trainer

    wanted = outcome(script(tmp_path / "whole")) | {"log": {}}
    for checkpoint in committed(tmp_path / "whole" / "checkpoints"):
        folder = broken_off(tmp_path / "whole", checkpoint, tmp_path / checkpoint.path.name)
        got = outcome(script(folder)) | {"log": {}}
        assert first_difference(wanted, got) is None, checkpoint.path.name


def test_resume_best_goes_back_even_within_a_script(tmp_path):
    trainer = worsening(tmp_path, keep_last=None)
    trainer.run(4, loader())
    trainer.run(4, loader(), resume="best")
    assert trainer.history.column("epoch") == [1, 2, 3, 4, 5, 6]
    lines = [line["step"] for line in read_history(tmp_path) if line["kind"] == "step"]
    assert lines == list(range(1, 37))


def test_a_new_folder_goes_on_from_a_checkpoint_of_another_one(tmp_path):
    first = managed(tmp_path / "first", keep_last=None)
    first.run(3, loader(shuffle=True))
    then = committed(tmp_path / "first" / "checkpoints")[0].path
    before = sorted((tmp_path / "first").rglob("*"))
    second = managed(tmp_path / "second")
    second.run(3, loader(shuffle=True), resume=then)
    assert_equal(weights(second.model), weights(first.model))
    assert sorted((tmp_path / "first").rglob("*")) == before


def test_load_state_then_run_goes_on_in_another_way(tmp_path):
    managed(tmp_path).run(2, loader())
    with pytest.raises(CheckpointError, match=r"gradient_clip: 0.0 in the checkpoint, 0.5 now"):
        managed(tmp_path, gradient_clip=0.5).run(3, loader(), resume="auto")
    trainer = managed(tmp_path, gradient_clip=0.5)
    assert trainer.load_state().name == "000002-step-12"
    trainer.run(1, loader())
    assert trainer.history.column("step") == [6, 12, 18]
    again = managed(tmp_path, gradient_clip=0.5)
    again.load_state("best")
    assert_equal(weights(again.model), weights(trainer.model))


def test_a_state_is_loaded_to_evaluate_without_an_optimizer(tmp_path):
    first = worsening(tmp_path)
    first.run(3, loader())
    trainer = worsening(tmp_path, model=mlp(seed=5), optimizer=None, mode="test")
    assert trainer.load_state("best").name == "000002-step-12"
    trainer.run(1, loader())
    first.apply_weights()
    assert_equal(weights(trainer.model), weights(first.model))


def test_the_order_of_the_samples_has_to_be_the_same_within_an_epoch(tmp_path):
    def run(seed, **options):
        order = torch.randperm(45, generator=torch.Generator().manual_seed(seed)).tolist()
        managed(tmp_path, save_every="4st").run(1, loader(sampler=order), resume="auto", **options)

    run(1, max_steps=6)
    os.rename(newest(tmp_path), tmp_path / "last")  # so that the newest is in the middle of the epoch
    with pytest.raises(ValueError, match="the samples come in another order than before"):
        run(2)
    run(1)
    assert steps_saved(tmp_path)[-1] == 6


def test_an_add_on_that_is_new_or_gone_is_told(tmp_path):
    managed(tmp_path).run(1, loader())
    both = make(PlainTrainer.add_on(EarlyStoppingAddon, StateManagerAddon), save_path=tmp_path)
    with pytest.warns(UserWarning, match="EarlyStoppingAddon, compared with the checkpoint, is new: it begins afresh"):
        both.run(2, loader(), resume="auto")
    with pytest.warns(UserWarning, match="EarlyStoppingAddon, compared with the checkpoint, is not there now"):
        managed(tmp_path).run(3, loader(), resume="auto")


def test_another_way_of_saving_is_no_difference(tmp_path):
    first = managed(tmp_path, save_every="2st")
    first.run(1, loader())
    other = {"save_format": "ckpt", "save_async": False, "save_every": "2ep", "keep_last": 1, "keep_best": 0}
    trainer, whole = managed(tmp_path, **other), make()
    trainer.run(2, loader(), resume="auto")
    whole.run(2, loader())
    assert_equal(weights(trainer.model), weights(whole.model))
    assert (newest(tmp_path) / "model.ckpt").is_file()


# ---------------------------------------------------------------------- harm


class Harm:
    """Would leave a file if it were unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize(
    "name", ["model.ckpt", "state.ckpt", "model.safetensors", "state.safetensors", "state.json", "process-0.json"]
)
def test_a_pickle_in_a_checkpoint_is_never_executed(tmp_path, name):
    folder, mark = tmp_path / "run", tmp_path / "executed"
    save_format = "ckpt" if name.endswith("ckpt") else "safetensors"
    managed(folder, save_format=save_format).run(1, loader())
    path = newest(folder)
    if name.endswith("ckpt"):
        torch.save({"0.weight": torch.zeros(16, 8), "harm": Harm(mark)}, path / name)
    else:
        (path / name).write_bytes(pickle.dumps(Harm(mark)))
    manifest = json.loads((path / "manifest.json").read_text())
    for file in manifest["files"]:
        manifest["files"][file] = dict(zip(("size", "sha256"), digest(path / file), strict=True))
    manifest["sha256"] = seal(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    trainer = managed(folder, save_format=save_format)
    with pytest.raises(CheckpointError, match=r"is refused: it holds more than tensors|is damaged or cut short"):
        trainer.run(2, loader(), resume="auto")
    assert not mark.exists()


class Hindered(PlainTrainer):
    """Finds a file in the place of its folder for two steps."""

    def train_step(self, batch):
        step, folder = self.progress_checker.get_step(), self.save_path / "checkpoints"
        if step == 3:
            self._checkpointer._saver.wait()
            folder.rename(folder.with_name("away"))
            folder.touch()
        if step == 5:
            self._checkpointer._saver.wait()
            folder.unlink()
            folder.with_name("away").rename(folder)
        return super().train_step(batch)


def test_a_save_that_fails_costs_no_line_of_the_history(tmp_path):
    trainer = managed(tmp_path, Hindered, save_every="1st", keep_last=None)
    with pytest.warns(UserWarning, match="a checkpoint could not be written") as said:
        trainer.run(2, loader())
    assert 1 <= len(said) <= 2
    steps, rows = lines_of(tmp_path)
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert list(rows) == [0, 1]
    assert steps_saved(tmp_path) == [1, 2, 5, 6, 7, 8, 9, 10, 11, 12]


def test_a_save_that_fails_ends_a_run_that_requires_it(tmp_path):
    trainer = managed(tmp_path, Hindered, save_every="1st", save_required=True)
    with pytest.warns(UserWarning, match="written"), pytest.raises(CheckpointError, match="could not be written"):
        trainer.run(9, loader())
    assert trainer.progress_checker.get_epoch() <= 2


class Failing(PlainTrainer):
    at = 4

    def train_step(self, batch):
        if self.progress_checker.get_step() == self.at:
            raise ZeroDivisionError("mine")
        return super().train_step(batch)


def test_an_error_of_the_user_names_the_last_state(tmp_path):
    with pytest.raises(ZeroDivisionError) as raised:
        managed(tmp_path, Failing, save_every="2st").run(1, loader())
    last = newest(tmp_path)
    assert [*getattr(raised.value, "__notes__", []), f"'{last}'"][0].count(f"'{last}'") == 1
    with pytest.raises(ZeroDivisionError):
        managed(tmp_path, Failing).run(1, loader(), resume="auto")
    whole, again = make(), managed(tmp_path)
    whole.run(1, loader())
    again.run(1, loader(), resume="auto")
    assert_equal(weights(again.model), weights(whole.model))


def test_a_checkpoint_that_is_damaged_is_passed_over(tmp_path):
    managed(tmp_path, keep_last=None).run(3, loader())
    file = newest(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    again = managed(tmp_path)
    with pytest.warns(UserWarning, match=r"000003-step-18 is passed over: model.safetensors has \d+ bytes"):
        again.run(3, loader(), resume="auto")
    assert again.history.column("step") == [6, 12, 18]
    assert [line["step"] for line in read_history(tmp_path) if line["kind"] == "step"] == list(range(1, 19))


def test_only_damaged_checkpoints_are_not_overwritten(tmp_path):
    managed(tmp_path, keep_last=1).run(1, loader())
    (newest(tmp_path) / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="state.json is missing"),
        pytest.raises(CheckpointError, match=r"none of the checkpoints .* is whole .* move the folder away"),
    ):
        managed(tmp_path).run(1, loader(), resume="auto")


def test_little_grows_with_the_number_of_checkpoints(tmp_path):
    sizes = []
    trainer = managed(tmp_path, save_every="1st", keep_best=0)
    for _ in range(3):
        trainer.run(1, loader(160))
        sizes.append(sum(file.stat().st_size for file in newest(tmp_path).iterdir()))
    assert sizes[2] - sizes[0] < 40 * 35  # bytes a step: its loss as text, and a share of its epoch's row
    assert len(committed(tmp_path / "checkpoints")) <= 3
