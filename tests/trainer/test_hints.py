"""What other trainers' users write is answered, when the class or the trainer is made, with what to write."""

import logging

import pytest
import torch
from torch import nn

import zae_engine.trainer.addons as all_add_ons
from tests.helpers import PlainTrainer, data, loader, make, mlp, sgd
from zae_engine import AddOnBase, Trainer
from zae_engine.suggestions import nearest
from zae_engine.trainer.addons import CSVLoggerAddon, EarlyStoppingAddon, PrecisionMixerAddon, StateManagerAddon
from zae_engine.trainer.compose import ADD_ONS, options_of


class TrainsOnly(Trainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self.model(x), y)}


class Neither(Trainer):
    pass


# ---------------------------------------------------------------------- the steps


def test_without_test_step_one_can_train():
    trainer = make(TrainsOnly)
    assert trainer.run(1, loader())[-1]["train_loss"] > 0


def test_a_validation_without_test_step_is_refused_before_the_first_batch(tmp_path):
    trainer = make(TrainsOnly.add_on(StateManagerAddon), save_path=tmp_path / "run")
    message = (
        r"has no test_step, which is needed to evaluate; write test_step\(self, batch\), or test_step = train_step"
    )
    with pytest.raises(TypeError, match=message):
        trainer.run(1, loader(), loader())
    assert trainer.progress_checker.get_step() == 1
    trainer.run(1, loader())
    assert trainer.progress_checker.get_epoch() == 2


def test_evaluating_and_inference_need_a_test_step():
    with pytest.raises(TypeError, match="TrainsOnly has no test_step, which is needed to evaluate"):
        make(TrainsOnly, mode="test").run(loader=loader())
    with pytest.raises(TypeError, match="TrainsOnly has no test_step"):
        make(TrainsOnly).inference(loader())


def test_training_needs_a_train_step():
    with pytest.raises(TypeError, match=r"Neither has no train_step, which is needed to train; write train_step\(self"):
        make(Neither)
    trainer = make(Neither, mode="test")
    trainer.toggle("train")
    with pytest.raises(TypeError, match="Neither has no train_step"):
        trainer.run(1, loader())


def test_a_step_with_another_signature_is_refused_when_the_trainer_is_made():
    class Indexed(PlainTrainer):
        def train_step(self, batch, batch_idx):
            return super().train_step(batch)

    with pytest.raises(
        TypeError, match=r"train_step\(batch, batch_idx\) of Indexed cannot be called, .*write train_step"
    ):
        make(Indexed)

    class WithDefault(PlainTrainer):
        def train_step(self, batch, batch_idx=0, *rest):
            return super().train_step(batch)

    make(WithDefault).run(1, loader())

    class IndexedTest(TrainsOnly):
        def test_step(self):
            return {"loss": torch.zeros(())}

    with pytest.raises(TypeError, match=r"test_step\(\) of IndexedTest cannot be called"):
        make(IndexedTest)

    class WithOutputs(PlainTrainer):
        def metric_on_epoch_end(self, outputs):
            return {}

    with pytest.raises(TypeError, match=r"metric_on_epoch_end\(outputs\) .* gets nothing; write metric_on_epoch_"):
        make(WithOutputs)


def test_the_class_of_a_scheduler_is_none():
    with pytest.raises(TypeError, match=r"is a class; create it first: scheduler=StepLR\(optimizer"):
        make(scheduler=torch.optim.lr_scheduler.StepLR)


def test_an_option_that_is_spelt_otherwise_is_named_before_what_is_missing():
    with pytest.raises(TypeError, match="has no option 'epochs'"):
        make().run(epochs=3, loader=loader())


# ---------------------------------------------------------------------- methods, attributes, options


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("training_step", "train_step"),
        ("configure_optimizers", "optimizer="),
        ("on_validation_end", "metric_on_epoch_end"),
        ("on_train_batch_end", "run_batch"),
        ("on_save_checkpoint", "state_dict"),
        ("on_save", "state_dict"),
        ("on_log", "logging"),
        ("prediction_step", "test_step"),
        ("lr_scheduler_step", "scheduler_step_on_batch"),
    ],
)
@pytest.mark.parametrize("base", [PlainTrainer, AddOnBase])
def test_a_method_that_nobody_would_call_is_refused_at_the_class(name, instead, base):
    with pytest.raises(TypeError, match=rf"Mine has {name}\(\), which nothing here would call; write .*{instead}"):
        type("Mine", (base,), {name: lambda self, *args: None})


def test_a_helper_of_that_name_that_is_called_is_accepted():
    class Mine(PlainTrainer):
        def training_step(self, batch):
            return {"loss": self.model(batch[0]).square().mean()}

        def train_step(self, batch):
            return self.training_step(batch)

    make(Mine).run(1, loader())

    class Refined(Mine):
        def training_step(self, batch):
            return super().training_step(batch)

    make(Refined).run(1, loader())


def test_a_step_that_reads_what_another_trainer_has_is_refused_when_the_trainer_is_made():
    class Counting(PlainTrainer):
        def train_step(self, batch):
            if self.current_epoch > 3:
                return {}
            return super().train_step(batch)

    message = r"train_step\(\) of Counting reads self.current_epoch; .* write progress_checker.get_epoch\(\)"
    with pytest.raises(AttributeError, match=message):
        make(Counting)

    class Own(Counting):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.current_epoch = 0

    make(Own).run(1, loader())


def test_an_attribute_given_from_outside_is_read():
    class Logs(PlainTrainer):
        def train_step(self, batch):
            self.logger.debug("a step")
            return super().train_step(batch)

    trainer = make(Logs)
    trainer.logger = logging.getLogger("mine")
    trainer.run(1, loader())


def test_unknown_attributes_are_answered():
    trainer = make()
    with pytest.raises(AttributeError, match=r"no 'fit' here: write run\(n_epoch=..., loader=..., valid_loader=...\)"):
        trainer.fit(loader())
    with pytest.raises(AttributeError, match=r"no attribute 'historie'; did you mean 'history'\?"):
        _ = trainer.historie
    with pytest.raises(AttributeError, match=r"'PlainTrainer' object has no attribute 'zzz'$"):
        _ = trainer.zzz
    assert getattr(trainer, "zzz", 3) == 3


def test_what_the_trainer_has_after_its_constructor_is_no_misspelling_before():
    class Hasty(PlainTrainer):
        def __init__(self, *args, **options):
            self.log_train.clear()
            super().__init__(*args, **options)

    with pytest.raises(AttributeError, match=r"no attribute 'log_train'; it is there after super\(\).__init__\(...\)"):
        make(Hasty)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("train_loader", "loader"), ("val_loader", "valid_loader"), ("max_epochs", "n_epoch"), ("max_step", "max_steps")],
)
def test_other_names_of_options_of_run(given, meant):
    with pytest.raises(TypeError, match=rf"run\(\) has no option {given!r}; did you mean {meant!r}"):
        make().run(**{"n_epoch": 1, "loader": loader(), given: 3})


def test_an_option_in_the_wrong_place_is_told_where_it_belongs():
    with pytest.raises(
        TypeError, match=r"no option 'gradient_clip'; it belongs to the trainer: give it when that is made"
    ):
        make().run(1, loader(), gradient_clip=1.0)
    with pytest.raises(TypeError, match=r"no option 'n_epoch'; it belongs to run\(\): give it there"):
        make(n_epoch=3)
    with pytest.raises(TypeError, match=r"no option 'max_epochs'; did you mean 'n_epoch'\? It belongs to run\(\)"):
        make(max_epochs=3)


def test_an_option_of_an_add_on_that_is_not_there_names_the_add_on():
    with pytest.raises(TypeError, match=r"'save_path'; it is StateManagerAddon's: write add_on\(StateManagerAddon\)"):
        make(save_path="runs/first")
    with pytest.raises(TypeError, match=r"'patiense'; did you mean 'patience'\? It is EarlyStoppingAddon's"):
        make(patiense=2)


def test_the_add_ons_options_are_all_known():
    own = {add_on: set(options_of(add_on)) - {"model", "device"} for name in all_add_ons.__all__
           if isinstance(add_on := getattr(all_add_ons, name), type)}  # fmt: skip
    found = set().union(*own.values()) - {"precision"}  # which rather means mixed_precision
    assert found <= ADD_ONS.keys()
    for name, words in ADD_ONS.items():
        assert name in found, f"{name}: {words}"


def test_names_that_are_not_near_are_not_meant():
    assert nearest("train_loader", ["valid_loader"]) is None
    assert nearest("Gradient_clp", ["gradient_clip", "seed"]) == "gradient_clip"


# ---------------------------------------------------------------------- parts


def test_several_optimizers_are_told_by_their_types():
    model = mlp()
    with pytest.raises(TypeError) as refused:
        PlainTrainer(model, device="cpu", optimizer=[sgd(model), torch.optim.lr_scheduler.StepLR(sgd(model), 1)])
    assert str(refused.value) == (
        "optimizer=a list of 2 (SGD, StepLR) is not a torch.optim.Optimizer; give several as a dict by name, or as a"
        " list, of at least one: {'g': Adam(...), 'd': Adam(...)}"
    )
    with pytest.raises(TypeError, match=r"create it first: optimizer=SGD\(model.parameters\(\), lr=...\)"):
        PlainTrainer(model, device="cpu", optimizer=torch.optim.SGD)
    optimizer = sgd(model)
    steps = [torch.optim.lr_scheduler.StepLR(optimizer, 1) for _ in range(2)]
    with pytest.raises(TypeError, match=r"a list of 2 \(StepLR\) has no step\(\); give one, several in a row"):
        PlainTrainer(model, device="cpu", optimizer=optimizer, scheduler=steps)


def test_a_trainer_without_model_can_be_made_and_cannot_train():
    trainer = PlainTrainer.add_on(EarlyStoppingAddon)(
        model=None, device="cpu", mode="train", optimizer=None, scheduler=None
    )
    assert list(trainer.model.parameters()) == []
    trainer.log_train["loss"] = [0.1]
    trainer.logging({"loss": torch.tensor(0.2)})
    with pytest.raises(ValueError, match="mode='train' needs an optimizer"):
        trainer.run(1, loader())


def test_an_add_on_alone_is_no_trainer():
    with pytest.raises(TypeError, match=r"EarlyStoppingAddon is an add-on, .*MyTrainer.add_on\(EarlyStoppingAddon\)"):
        EarlyStoppingAddon(mlp())
    with pytest.raises(TypeError, match="AddOnBase is an add-on"):
        AddOnBase()


def test_training_a_trainer_without_optimizer_by_hand_is_refused():
    trainer = make(mode="test", optimizer=None)
    trainer.run(loader=loader())
    trainer.toggle("train")
    with pytest.raises(ValueError, match="this trainer has no optimizer, so nothing can be trained; give optimizer="):
        trainer.run_batch(next(iter(loader())))


@pytest.mark.parametrize(("asked", "got"), [(["auto"], "no"), (["bf16", "auto"], "bf16"), (["fp16", "auto"], "no")])
def test_auto_is_accepted_among_precisions(asked, got):
    trainer = make(PlainTrainer.add_on(PrecisionMixerAddon), precision=asked)
    assert trainer.accelerator.mixed_precision == got


def test_a_run_of_no_epoch_says_so(capsys):
    make(log_bar=True).run(0, loader())
    assert "nothing was trained in this call" in capsys.readouterr().err


@pytest.mark.parametrize("add_on", [StateManagerAddon, CSVLoggerAddon])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train_loader": loader(), "max_epochs": 1}, "no option"),
        ({"max_epochs": 1, "loader": loader()}, "did you mean 'n_epoch'"),
        ({"n_epoch": 1, "train_loader": loader()}, "did you mean 'loader'"),
        ({"n_epoch": 1, "loader": data()}, "loader is a TensorDataset, a dataset"),
        ({"n_epoch": 1, "loader": loader(), "valid_loader": {"a": data()}}, "valid_loader 'a' is a TensorDataset"),
    ],
)
def test_a_call_that_is_refused_leaves_no_folder_of_a_failed_run(tmp_path, add_on, given, words):
    with pytest.raises(TypeError, match=words):
        make(PlainTrainer.add_on(add_on), save_path=tmp_path / "run").run(**given)
    assert not (tmp_path / "run" / "run.json").exists()
