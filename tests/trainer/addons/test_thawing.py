"""Parameters that are thawed, frozen or given to the optimizer in the middle of a run, and a run that goes on there."""

import pytest
import torch
from torch import nn

from tests.helpers import PlainTrainer, assert_equal, loader, make, mlp, sgd, weights
from tests.trainer.addons.resumed import Drawing, assert_resumes, broken_off, build, first_difference, outcome
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.checkpoint.folder import committed
from zae_engine.trainer import AddOnBase
from zae_engine.trainer.addons import StateManagerAddon


def adam(model):
    return torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)


def head_only():
    model = mlp(0.3)
    model[0].requires_grad_(False)
    return model


class Changing:
    """Does something before the second epoch, or the third; what it has done already, it does again."""

    def run_epoch(self, loader, **kwargs):
        if self.mode == "train":
            self.change(self.progress_checker.get_epoch())
        super().run_epoch(loader, **kwargs)


class Thawing(Changing, Drawing):
    def change(self, epoch):
        if epoch == 2:
            self.model[0].requires_grad_(True)


class Freezing(Changing, Drawing):
    def change(self, epoch):
        if epoch == 2:
            self.model[3].requires_grad_(False)


class Adding(Changing, Drawing):
    def change(self, epoch):
        if epoch == 2:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters()), "lr": 0.02, "name": "backbone"})


class Twice(Changing, Drawing):
    """One parameter after the other, and back."""

    def change(self, epoch):
        if epoch == 2:
            self.model[0].bias.requires_grad_(True)
            self.optimizer.add_param_group({"params": [self.model[0].bias], "lr": 0.02})
        if epoch == 3:
            self.model[0].weight.requires_grad_(True)
            self.model[3].requires_grad_(False)
            self.optimizer.add_param_group({"params": [self.model[0].weight], "weight_decay": 0.1})


class Halving(Changing, Drawing):
    """Halves the learning rate, which is no change of what is trained."""

    def change(self, epoch):
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5


class Inside(Drawing):
    """In the middle of an epoch, which one process can do."""

    def optimize(self, window):
        if self.progress_checker.get_step() == 5:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters())})
        super().optimize(window)


class AtTheEnd(Drawing):
    def metric_on_epoch_end(self):
        if self.mode == "train" and not self.model[0].weight.requires_grad:
            self.model[0].requires_grad_(True)
        return super().metric_on_epoch_end()


class GroupAddon(AddOnBase):
    def run_epoch(self, loader, **kwargs):
        if self.mode == "train" and self.progress_checker.get_epoch() == 2:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters()), "lr": 0.02})
        super().run_epoch(loader, **kwargs)


class Exchanging(Changing, Drawing):
    """Another optimizer of the same class; in the epoch before, the moments of the old one are forgotten."""

    def change(self, epoch):
        if epoch == 2:
            for state in self.optimizer.state.values():
                state["exp_avg"].zero_()
        if epoch == 3:
            self.model[0].requires_grad_(True)
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.003)


class Renewing(Changing, Drawing):
    """A new head, with an optimizer of its own."""

    def change(self, epoch):
        if epoch == 2:
            torch.manual_seed(9)
            self.model[3] = nn.Linear(16, 3)
            self.optimizer = adam(self.model)


class Moving(Changing, Drawing):
    """A parameter goes from one group into another one, with its state."""

    def change(self, epoch):
        if epoch == 2:
            moved = self.optimizer.param_groups[0]["params"].pop()
            state = self.optimizer.state.pop(moved)
            self.optimizer.add_param_group({"params": [moved], "lr": 0.5})
            self.optimizer.state[moved] = state


class Patient(Adding):
    """Tells the scheduler of the group, too."""

    def change(self, epoch):
        super().change(epoch)
        if epoch == 2:
            self.scheduler.min_lrs.append(0.0)


CHANGES = {
    "thawed": (Thawing, {"model": head_only, "optimizer": lambda m: torch.optim.Adam(m.parameters(), lr=0.01)}),
    "frozen": (Freezing, {}),
    "added": (Adding, {"model": head_only, "optimizer": adam}),
    "added and clipped": (Adding, {"model": head_only, "optimizer": adam, "gradient_clip": 0.1}),
    "added, in shards": (Adding, {"model": head_only, "optimizer": adam, "shards": 2}),
    "added, in pieces": (Adding, {"model": head_only, "optimizer": adam, "gradient_accumulation_steps": 2}),
    "added, with a schedule": (
        Adding,
        {
            "model": head_only,
            "optimizer": adam,
            "scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
        },
    ),
    "added, with a plateau": (
        Patient,
        {
            "model": head_only,
            "optimizer": adam,
            "scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        },
    ),
    "another optimizer": (Exchanging, {"model": head_only, "optimizer": adam}),
    "a new head": (Renewing, {"model": head_only, "optimizer": adam}),
    "moved": (Moving, {"optimizer": lambda m: torch.optim.Adam(m.parameters(), lr=0.01)}),
    "twice": (Twice, {"model": head_only, "optimizer": adam}),
    "halved": (Halving, {}),
    "inside": (Inside, {"model": head_only, "optimizer": adam}),
    "at an epoch's end": (AtTheEnd, {"model": head_only}),
    "by an add-on": (Drawing, {"model": head_only, "optimizer": adam, "add_ons": (GroupAddon, StateManagerAddon)}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_goes_on_from_any_step(tmp_path, name):
    kind, options = CHANGES[name]

    def script(folder):
        trainer = build(folder, kind=kind, **options)
        trainer.run(3, loader(14, 7, shuffle=True), resume="auto")
        seen.append([p.requires_grad for p in trainer.model.parameters()])
        return trainer

    seen = []
    assert assert_resumes(tmp_path, script) == 6
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("new", [False, True])
def test_between_two_calls_of_a_script(tmp_path, new):
    def script(folder):
        trainer = build(folder, model=head_only, optimizer=adam)
        trainer.run(2, loader(14, 7, shuffle=True), resume="auto")
        trainer.model[0].requires_grad_(True)
        if new:  # another optimizer, of another kind
            trainer.optimizer = sgd(trainer.model)
        else:
            trainer.optimizer.add_param_group({"params": list(trainer.model[0].parameters()), "lr": 0.02})
        trainer.run(1, loader(14, 7, shuffle=True), resume="auto")
        return trainer

    assert_resumes(tmp_path, script)


def test_what_comes_after_a_call_that_was_passed_over_has_the_weights_and_the_history(tmp_path):
    def script(epochs):
        trainer = make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path)
        trainer.run(2, loader(), resume="auto")
        found.append((weights(trainer.model), len(trainer.history), trainer.weight_buffer["epoch"]))
        trainer.apply_weights()
        if epochs:
            trainer.run(epochs, loader(), resume="auto")
        return trainer

    found = []
    first, again = script(1), script(3)
    assert_equal(found[1][0], weights(first.model))
    assert found[1][1:] == (3, [2])
    assert len(again.history) == 5
    third = make(PlainTrainer.add_on(StateManagerAddon), save_path=tmp_path)
    third.run(2, loader(), resume="auto")
    with pytest.raises(CheckpointError, match=r"write run\(\.\.\., resume='auto'\) to go on with it"):
        third.run(2, loader())  # its optimizer is not the run's yet


def exponential(trainer):
    trainer.scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, 0.5)


def momentum(trainer):
    trainer.optimizer = sgd(trainer.model)


@pytest.mark.parametrize(("what", "change"), [("scheduler", exponential), ("optimizer", momentum)])
def test_another_class_is_gone_on_with_in_its_epoch_and_refused_later(tmp_path, what, change):
    class Once(Changing, Drawing):
        def change(self, epoch):
            if epoch == 2:
                change(self)

    def script(folder):
        step = {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)} if what == "scheduler" else {}
        trainer = build(folder, kind=Once, optimizer=adam, **step)
        trainer.run(3, loader(14, 7, shuffle=True), resume="auto")
        return trainer

    whole = script(tmp_path / "whole")
    first, later = (c for c in committed(tmp_path / "whole" / "checkpoints") if c.step in (3, 4))
    again = script(broken_off(tmp_path / "whole", first, tmp_path / "again"))
    assert first_difference(outcome(whole), outcome(again)) is None
    with pytest.raises(CheckpointError, match=f"the {what}: .* in the checkpoint, .* now. Make the trainer with"):
        script(broken_off(tmp_path / "whole", later, tmp_path / "later"))


def test_going_back_takes_groups_away_again(tmp_path):
    trainer = build(tmp_path, kind=Adding, model=head_only, optimizer=adam)
    trainer.run(3, loader(20, 7))
    after = weights(trainer.model)
    trainer.load_state(tmp_path / "checkpoints" / "000003-step-3")
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [2]
    assert not trainer.model[0].weight.requires_grad
    trainer.run(2, loader(20, 7))
    assert_equal(weights(trainer.model), after)


def test_what_the_script_freezes_now_stays_frozen(tmp_path):
    build(tmp_path).run(1, loader(20, 7))
    trainer = build(tmp_path, model=head_only, optimizer=sgd)
    trainer.load_state()
    assert not trainer.model[0].weight.requires_grad
    trainer = build(tmp_path, model=head_only, optimizer=lambda m: sgd(m[3]))
    with pytest.raises(CheckpointError, match="the optimizer's groups: "):
        trainer.load_state()


def test_a_named_group_keeps_its_names(tmp_path):
    def script(folder):
        trainer = build(folder, kind=Named, model=head_only, optimizer=lambda m: sgd_named(m[3]))
        trainer.run(3, loader(20, 7), resume="auto")
        return trainer

    assert_resumes(tmp_path, script)


def sgd_named(model):
    return torch.optim.SGD(list(model.named_parameters()), lr=0.1)


class Named(Changing, Drawing):
    def change(self, epoch):
        if epoch == 2:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].named_parameters())})


def test_a_new_head_is_trained(tmp_path):
    class Replacing(PlainTrainer):
        def run_epoch(self, loader, **kwargs):
            if self.mode == "train" and self.progress_checker.get_epoch() == 2:
                self.model[3] = nn.Linear(16, 3)
                self.optimizer.param_groups[0]["params"] = list(self.model.parameters())
            super().run_epoch(loader, **kwargs)

    trainer = make(Replacing)
    trainer.run(2, loader(), loader(20))
    before = weights(trainer.model)
    trainer.run(1, loader())
    assert not torch.equal(before["3.weight"], trainer.model[3].weight)


def test_parameters_that_are_not_the_models_are_refused_in_the_middle_of_a_run():
    class Foreign(PlainTrainer):
        def run_epoch(self, loader, **kwargs):
            if self.mode == "train" and self.progress_checker.get_epoch() == 2:
                self.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
            super().run_epoch(loader, **kwargs)

    with pytest.raises(ValueError, match="1 of the optimizer's 5 parameters are not the model's"):
        make(Foreign).run(2, loader())
