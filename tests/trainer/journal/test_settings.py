"""What a run is made of, in plain values, and how differences are told."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, RandomSampler

from tests.helpers import PlainTrainer, data, loader, make, mlp, sgd
from zae_engine.trainer.journal.settings import circumstances_of, data_of, differences, settings_of, without_secrets


def settings(**options):
    trainer = make(**options)
    return settings_of(trainer, trainer._place.modes)


def test_the_same_twice_has_no_difference():
    assert differences(settings(dropout=0.1), settings(dropout=0.1)) == []


def with_scheduler(gamma):
    model = mlp()
    optimizer = sgd(model)
    return {"model": model, "optimizer": optimizer, "scheduler": lr_scheduler.ExponentialLR(optimizer, gamma)}


def with_optimizer(kind, **options):
    model = mlp()
    return {"model": model, "optimizer": kind(model.parameters(), **options)}


def frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


CHANGES = {
    "the optimizer: lr: 0.1 in the checkpoint, 0.2 now": (
        with_optimizer(torch.optim.SGD, lr=0.1),
        with_optimizer(torch.optim.SGD, lr=0.2),
    ),
    "the optimizer: class: SGD in the checkpoint, Adam now": (
        with_optimizer(torch.optim.SGD, lr=0.1),
        with_optimizer(torch.optim.Adam, lr=0.1),
    ),
    "the scheduler: gamma: 0.9 in the checkpoint, 0.8 now": (with_scheduler(0.9), with_scheduler(0.8)),
    "gradient_clip: 0.0 in the checkpoint, 1.0 now": ({}, {"gradient_clip": 1.0}),
    "shards: None in the checkpoint, 4 now": ({}, {"shards": 4}),
    "seeded_samples: True in the checkpoint, False now": ({}, {"seeded_samples": False}),
    "model: (2): Dropout(p=0.1, inplace=False) in the checkpoint, (2): Dropout(p=0.2, inplace=False) now": (
        {"model": mlp(0.1)},
        {"model": mlp(0.2)},
    ),
    "parameters: 0.weight: (16, 8) float32 in the checkpoint, (16, 8) float32 frozen now": (
        {"model": mlp()},
        {"model": frozen()},
    ),
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_difference_in_words(words):
    then, now = CHANGES[words]
    assert differences(settings(**then), settings(**now)) == [words]


def test_a_scheduler_that_is_new_or_gone_is_one_line():
    with_it, without = settings(**with_scheduler(0.9)), settings(**with_optimizer(torch.optim.SGD, lr=0.1))
    assert "the scheduler: ExponentialLR in the checkpoint, None now" in differences(with_it, without)
    assert "the scheduler: None in the checkpoint, ExponentialLR now" in differences(without, with_it)


def test_groups_of_an_optimizer_are_told_apart():
    def groups(lr):
        model = mlp()
        parts = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": lr}]
        return settings(model=model, optimizer=torch.optim.SGD(parts, lr=0.1))

    assert differences(groups(0.2), groups(0.3)) == ["group 1 of the optimizer: lr: 0.2 in the checkpoint, 0.3 now"]


class Odd(nn.Linear):
    def extra_repr(self):
        return f"at {id(self):#x}"


def test_addresses_in_a_models_description_are_no_difference():
    assert differences(settings(model=Odd(8, 3)), settings(model=Odd(8, 3))) == []


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        (loader(45), loader(44), "the dataset's length: 45 in the checkpoint, 44 now"),
        (loader(), loader(batch_size=9), "the batch of an optimizer step: 8 in the checkpoint, 9 now"),
        (loader(), loader(drop_last=True), "drop_last: False in the checkpoint, True now"),
        (loader(), list(loader()), "the dataset: TensorDataset in the checkpoint, list now"),
        (loader(), loader(shuffle=True), "the sampler: SequentialSampler in the checkpoint, RandomSampler now"),
        (
            loader(sampler=RandomSampler(data(), num_samples=20)),
            loader(sampler=RandomSampler(data(), num_samples=30)),
            "the sampler's num_samples: 20 in the checkpoint, 30 now",
        ),
    ],
)
def test_a_difference_in_the_data(then, now, words):
    facts = [data_of(each, getattr(each, "batch_size", None) or 0) for each in (then, now)]
    assert words in differences(*facts)


def test_workers_are_no_difference():
    assert data_of(loader(), 8) == data_of(DataLoader(data(), 8, num_workers=2), 8)


class Commented(PlainTrainer):
    def train_step(self, batch):
        # A comment is in the code, too.
        return super().train_step(batch)


def test_the_code_of_a_step_is_a_circumstance():
    then, now = (circumstances_of(make(kind), 1, {}) for kind in (PlainTrainer, Commented))
    assert [line.split(":")[0] for line in differences(then, now)] == ["the code of train_step"]


def test_options_of_the_run_that_look_secret_are_not_shown():
    facts = circumstances_of(make(), 1, {"n_epoch": 3, "api_key": "S3CRET"})
    assert facts["n_epoch"] == "3"
    assert facts["api_key"] == "***"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--api-key=S3 CRET", "--api-key=***"),
        ("WANDB_API_KEY=S3CRET", "WANDB_API_KEY=***"),
        ("logger.token=S3CRET", "logger.token=***"),
        ('{"api_key": "S3CRET", "lr": 1}', '{"api_key": "***", "lr": 1}'),
        ("https://me:S3CRET@host/x?a=1", "https://***@host/x?a=1"),
        ("https://host/x?access_token=S3CRET&a=1", "https://host/x?access_token=***&a=1"),
        ("hf_S3CRETS3CRET", "***"),
        ("data/keys.csv", "data/keys.csv"),
        ("--lr=0.1", "--lr=0.1"),
    ],
)
def test_secrets_within_a_word_are_left_out(word, shown):
    assert without_secrets([word]) == [shown]


def test_the_value_behind_a_secret_option_is_left_out():
    given = ["train.py", "--token", "S3CRET", "--lr", "0.1", "--password", "S3CRET"]
    assert without_secrets(given) == ["train.py", "--token", "***", "--lr", "0.1", "--password", "***"]
