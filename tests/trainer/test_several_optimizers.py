"""Several optimizers: stepped together, or one at a step by its name; the same as loops by hand, and after a resume."""

import copy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import assert_equal, weights
from zae_engine.trainer import Trainer
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.several_optimizers import Optimizers

bce = nn.functional.binary_cross_entropy_with_logits
ROOT = Path(__file__).parents[2]


def losses(model, which, x, z):
    if which == "d":
        real, fake = model["d"](x), model["d"](model["g"](z).detach())
        return bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    fake = model["d"](model["g"](z))
    return bce(fake, torch.ones_like(fake))


class Gan(Trainer):
    def train_step(self, batch):
        which = self.turn("d", "d", "g")
        return {"loss": losses(self.model, which, *batch), "optimizer": which}

    test_step = train_step


class Together(Trainer):
    def train_step(self, batch):
        return {"loss": sum(losses(self.model, which, *batch) for which in "dg")}


def model():
    torch.manual_seed(0)
    layers = {"g": nn.Linear(4, 8), "d": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))}
    return nn.ModuleDict(layers).double()


def optimizers(net):
    return {
        "g": torch.optim.Adam(net["g"].parameters(), lr=1e-3),
        "d": torch.optim.SGD(net["d"].parameters(), lr=0.1, momentum=0.9),
    }


def loader(samples=52):
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(samples, n, generator=generator, dtype=torch.float64) for n in (8, 4))
    return DataLoader(TensorDataset(x, z), batch_size=8)


def make(kind=Gan, net=None, **options):
    net = net or model()
    return kind(net, **({"device": "cpu", "log_bar": False, "seed": 0, "optimizer": optimizers(net)} | options))


def by_hand(steps, which=None, max_norm=0.0, schedules=()):
    net = model()
    held = optimizers(net)
    own = {name: StepLR(held[name], size) for name, size in dict(schedules).items()}
    batches = [batch for _ in range(-(-steps // len(loader()))) for batch in loader()][:steps]
    for step, batch in enumerate(batches):
        names = ["d", "d", "g"][step % 3] if which is None else which
        for each in held.values():
            each.zero_grad()
        sum(losses(net, name, *batch) for name in names).backward()
        for name in names:
            if max_norm:
                nn.utils.clip_grad_norm_(net[name].parameters(), max_norm)
            held[name].step()
            if name in own:
                own[name].step()
    return weights(net)


@pytest.mark.parametrize("max_norm", [0.0, 0.1])
def test_they_take_turns_as_in_a_loop_by_hand(max_norm):
    trainer = make(gradient_clip=max_norm)
    trainer.run(2, loader())
    assert_equal(weights(trainer.model), by_hand(14, max_norm=max_norm))


@pytest.mark.parametrize("several", [list, dict])
def test_without_a_name_all_are_stepped_together(several):
    net = model()
    held = optimizers(net)
    trainer = make(Together, net, optimizer=held if several is dict else list(held.values()))
    trainer.run(2, loader())
    assert_equal(weights(net), by_hand(14, which="dg"))


def test_each_has_a_schedule_that_counts_its_own_steps():
    net = model()
    held = optimizers(net)
    schedules = {"g": StepLR(held["g"], 2), "d": StepLR(held["d"], 3)}
    trainer = make(net=net, optimizer=held, scheduler=schedules, scheduler_step_on_batch=True)
    trainer.run(2, loader())
    assert_equal(weights(net), by_hand(14, schedules={"g": 2, "d": 3}))
    assert [schedules[name].last_epoch for name in "dg"] == [10, 4]


def test_a_plateau_of_one_of_them_gets_the_loss():
    net = model()
    held = optimizers(net)
    plateau = ReduceLROnPlateau(held["d"], patience=0, threshold=1e9)
    trainer = make(net=net, optimizer=held, scheduler={"d": plateau, "g": None})
    trainer.run(3, loader())
    assert held["d"].param_groups[0]["lr"] < 0.1
    assert held["g"].param_groups[0]["lr"] == 1e-3


def test_rates_losses_and_norms_are_told_by_name():
    trainer = make(gradient_clip=1.0)
    row = trainer.run(1, loader(), loader(16))[-1]
    assert (row["lr/g"], row["lr/d"]) == (1e-3, 0.1)
    assert {"train_loss/d", "train_loss/g", "train_grad_norm/d", "train_grad_norm/g", "test_loss"} <= row.keys()
    assert not any("optimizer" in key for key in row)
    assert "optimizer" not in trainer.log_test


@pytest.mark.parametrize(
    "pieces", [{"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 8}, {"shards": 4}]
)
def test_micro_batches_and_shards_give_the_same_model(pieces):
    whole, cut = make(), make(**pieces)
    whole.run(2, loader())
    cut.run(2, loader())
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_state_is_that_of_one_optimizer_and_goes_back():
    trainer = make()
    trainer.run(1, loader())
    state = copy.deepcopy(trainer.optimizer.state_dict())
    assert [group["name"] for group in state["param_groups"]] == ["g", "d"]
    assert sorted(state["state"]) == list(range(6))
    fresh = Optimizers(optimizers(trainer.model))
    fresh.load_state_dict(state)
    assert (
        fresh["g"].state[trainer.model["g"].weight]["step"]
        == trainer.optimizer["g"].state[trainer.model["g"].weight]["step"]
    )
    with pytest.raises(ValueError, match="the state is of the optimizers g, d; these are d, g"):
        Optimizers(dict(reversed(optimizers(trainer.model).items()))).load_state_dict(state)


KILLED = """
import os, signal, sys
from tests.trainer.test_several_optimizers import Gan, StateManagerAddon, loader, make
class Killed(Gan):
    def train_step(self, batch):
        if self.progress_checker.get_step() == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)
make(Killed.add_on(StateManagerAddon), save_path=sys.argv[1], save_every="4st").run(3, loader())
"""


@pytest.mark.usefixtures("starts_processes")
def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    trainer = make(Gan.add_on(StateManagerAddon), save_path=tmp_path / "run", save_every="4st")
    trainer.run(3, loader(), resume="auto")
    assert trainer.progress_checker.get_step() == 22
    assert_equal(weights(trainer.model), by_hand(21))


# ---------------------------------------------------------------------- what is refused


def test_a_name_that_is_none_is_refused():
    class Wrong(Gan):
        def train_step(self, batch):
            return super().train_step(batch) | {"optimizer": "x"}

    with pytest.raises(ValueError, match="train_step returned 'optimizer': 'x'; name one of 'g', 'd'"):
        make(Wrong).run(1, loader())


def test_a_name_beside_a_list_is_refused():
    net = model()
    with pytest.raises(ValueError, match="name none, since they were given as a list"):
        make(net=net, optimizer=list(optimizers(net).values())).run(1, loader())


def test_a_name_beside_one_optimizer_is_refused():
    net = model()
    with pytest.raises(ValueError, match="'optimizer': 'd', but the trainer has one optimizer; give several by name"):
        make(net=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)).run(1, loader())


def test_parts_of_a_batch_for_two_optimizers_are_refused():
    class Torn(Gan):
        turns = 0

        def train_step(self, batch):
            self.turns += 1
            return super().train_step(batch) | {"optimizer": "dg"[self.turns % 2]}

    with pytest.raises(ValueError, match="named the optimizers 'd' and 'g' for parts of one batch"):
        make(Torn, gradient_accumulation_steps=2).run(1, loader())


def test_a_parameter_in_two_of_them_is_refused():
    net = model()
    both = {"a": torch.optim.SGD(net.parameters(), lr=0.1), "b": torch.optim.SGD(net["d"].parameters(), lr=0.1)}
    with pytest.raises(ValueError, match=r"the optimizers 'a' and 'b' both hold 'd\.0\.weight'"):
        make(net=net, optimizer=both)


def test_schedulers_of_others_are_refused():
    net = model()
    held = optimizers(net)
    with pytest.raises(ValueError, match="does not fit the optimizers 'g', 'd'"):
        make(net=net, optimizer=held, scheduler={"x": StepLR(held["g"], 1)})
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        make(net=net, optimizer=held, scheduler={"d": StepLR(held["g"], 1)})


def test_what_are_no_optimizers_are_refused():
    with pytest.raises(TypeError, match="give several as a dict by name, or as a list, of at least one"):
        make(optimizer={})
    with pytest.raises(ValueError, match=r"turn\(\) got no names"):
        make().turn()
