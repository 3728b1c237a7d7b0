"""Each submodule keeps the mode that the user has given it."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_equal, loader, make, weights
from zae_engine import Trainer
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.trainer.addons import StateManagerAddon


class Pair(nn.Module):
    """A student, and a teacher whose statistics and dropout are those of an evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5))
        self.teacher = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)).requires_grad_(False)


class Distilling(Trainer):
    def train_step(self, batch):
        x, _ = batch
        self.seen.append([m.training for m in self.model.modules()])
        return {"loss": nn.functional.mse_loss(self.model.student(x), self.model.teacher(x))}

    def test_step(self, batch):
        x, _ = batch
        assert not any(m.training for m in self.model.modules())
        return {"loss": nn.functional.mse_loss(self.model.student(x), self.model.teacher(x))}


def distilling(model=None, kind=Distilling, **options):
    model = Pair() if model is None else model
    trainer = make(kind, model=model, optimizer=torch.optim.SGD(model.student.parameters(), lr=0.1), **options)
    trainer.seen = []
    return trainer


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def test_a_teacher_in_eval_stays_there_and_its_statistics_too():
    model = Pair()
    model.teacher.eval()
    before, wanted = weights(model.teacher), modes(model)
    trainer = distilling(model)
    trainer.run(2, loader(), loader(), valid_every="2st")
    trainer.run(1, loader())
    assert modes(model) == wanted
    assert all(seen == list(wanted.values()) for seen in trainer.seen)
    assert_equal(weights(model.teacher), before)


def test_a_model_that_is_all_in_eval_is_trained_as_a_whole():
    one, other = Pair().eval(), Pair()
    one.teacher[0].weight.requires_grad_(True), other.teacher[0].weight.requires_grad_(True)
    for model in (one, other):
        distilling(model).run(2, loader())
    assert_equal(weights(one), weights(other))
    assert one.student.training


def test_a_choice_outlives_a_whole_model_that_was_put_into_eval_meanwhile():
    class Sampling(Distilling):
        def run_epoch(self, loader, **kwargs):
            super().run_epoch(loader, **kwargs)
            self.model.eval()  # to draw some samples; and nothing puts it back

    class SamplingInEpochs(Distilling):
        def run_batch(self, batch, **kwargs):
            super().run_batch(batch, **kwargs)
            self.model.eval()

    for kind in (Sampling, SamplingInEpochs):
        model = Pair()
        model.teacher.eval()
        wanted = list(modes(model).values())
        trainer = distilling(model, kind)
        trainer.run(2, loader())
        assert all(seen == wanted for seen in trainer.seen), kind


def test_a_mode_that_is_changed_between_epochs_is_the_next_ones():
    class Thawing(Distilling):
        def run_epoch(self, loader, **kwargs):
            if self.progress_checker.get_epoch() == 2:
                self.model.teacher.train().requires_grad_(True)
            super().run_epoch(loader, **kwargs)

    model = Pair()
    model.teacher.eval()
    trainer = distilling(model, Thawing)
    trainer.run(2, loader())
    assert not trainer.seen[0][-1]
    assert all(trainer.seen[-1])


def test_a_model_whose_own_train_keeps_a_part_in_eval():
    class Stubborn(Pair):
        frozen = True

        def train(self, mode=True):
            super().train(mode)
            if self.frozen:
                self.teacher.eval()
            return self

    model = Stubborn()  # its train() was never called yet
    before = weights(model.teacher)
    trainer = distilling(model)
    trainer.run(1, loader())
    assert_equal(weights(model.teacher), before)
    model.frozen = False
    model.teacher.requires_grad_(True)
    trainer.run(1, loader())
    assert model.teacher[0].training


def test_a_part_that_trains_within_a_model_in_eval():
    model = Pair().eval()
    model.student.train()
    wanted = modes(model)
    trainer = distilling(model)
    trainer.run(2, loader(), loader())
    assert modes(model) == wanted
    assert all(seen == list(wanted.values()) for seen in trainer.seen)


def test_a_frozen_part_whose_statistics_move_is_said_once():
    trainer = distilling()
    with pytest.warns(UserWarning, match=r"teacher is frozen, .* write model.teacher.eval\(\) before run\(\)") as said:
        trainer.run(2, loader())
    assert len(said) == 1
    trainer.run(1, loader())


def test_a_trained_part_in_eval_is_said_once():
    model = Pair()
    model.teacher.requires_grad_(True)
    model.student.eval()
    trainer = distilling(model)
    with pytest.warns(
        UserWarning, match=r"student is trained, but stays in eval\(\) .* model.student.train\(\)"
    ) as said:
        trainer.run(2, loader())
    assert len(said) == 1


def test_one_layer_in_eval_is_nobodys_mistake():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[1].eval()
    before = model[1].running_mean.clone()
    make(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).run(1, loader())
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.filterwarnings("ignore:teacher is trained, but stays in eval")
def test_modes_go_on_after_a_resume(tmp_path):
    class Changing(Distilling):
        """Puts the teacher into eval() in the second epoch, by something that happens once."""

        def run_epoch(self, loader, **kwargs):
            if self.mode == "train" and self.progress_checker.get_epoch() == 2:
                self.model.teacher.eval()
            super().run_epoch(loader, **kwargs)

    def started():
        model = Pair()
        model.teacher.requires_grad_(True)
        kind = Changing.add_on(StateManagerAddon)
        return distilling(model, kind, save_path=tmp_path / "run", seeded_samples=False)

    first = started()
    first.run(2, loader(), resume="auto")
    second = started()
    second.run(3, loader(), resume="auto")
    assert second.seen
    assert not any(seen[-1] for seen in second.seen)
    assert second.model.student.training


def test_verify_keeps_the_modes():
    """BatchNorm in train mode depends on the piece; in eval() it does not."""
    model = Pair()
    model.student = nn.Linear(8, 3)
    model.teacher.eval()
    trainer = distilling(model)
    assert trainer.verify(loader(64, 16))
    model.teacher.train()
    assert not trainer.verify(loader(64, 16))


@pytest.mark.filterwarnings("ignore:teacher is frozen, but the running statistics")
def test_another_choice_than_the_run_began_with_is_refused_and_has_its_way_after_load_state(tmp_path):
    def built(still):
        model = Pair()
        model.teacher.train(not still)
        return distilling(model, Distilling.add_on(StateManagerAddon), save_path=tmp_path)

    built(False).run(1, loader(), resume="auto")
    trainer = built(True)
    with pytest.raises(CheckpointError, match=r"in eval\(\): None in the checkpoint, teacher now"):
        trainer.run(2, loader(), resume="auto")
    trainer.load_state()
    trainer.run(1, loader())
    assert not trainer.seen[-1][-1]
    with pytest.raises(CheckpointError, match=r"in eval\(\): None in the checkpoint, teacher now"):
        built(True).run(3, loader(), resume=tmp_path / "checkpoints" / "000001-step-6")


def test_what_the_models_own_train_keeps_in_eval_is_no_choice(tmp_path):
    class Stubborn(Pair):
        def train(self, mode=True):
            super().train(mode)
            self.teacher.eval()
            return self

    kind, model = Distilling.add_on(StateManagerAddon), Stubborn()
    distilling(model, kind, save_path=tmp_path).run(1, loader(), resume="auto")
    distilling(model, kind, save_path=tmp_path).run(2, loader(), resume="auto")  # train() was called by now


def test_a_choice_is_told_by_its_topmost_names():
    model = Pair()
    model.student[1].eval()
    model.teacher.training = False
    assert distilling(model)._place.modes.in_words(model) == "student.1, teacher (itself)"
    model.train()
    assert distilling(model)._place.modes.in_words(model) is None
    model.training = False
    assert distilling(model)._place.modes.in_words(model) == "the model (itself)"
