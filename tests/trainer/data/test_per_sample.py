"""What of a batch is per sample: decided once, by what the loader makes, and refused when nothing can tell."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.helpers import assert_equal, largest_difference, weights
from zae_engine.trainer import Trainer
from zae_engine.trainer.data.batch_entries import sizes_of

Fields = namedtuple("Fields", ["w", "x", "y"])
W = {2: torch.tensor([1.0, 3.0]).double(), 4: torch.tensor([1.0, 3.0, 0.5, 2.0]).double()}


def samples(targets, count=10):
    torch.manual_seed(0)
    return [(torch.randn(3).double(), torch.randn(targets).double()) for _ in range(count)]


class Collate:
    """Puts a constant, a weight for each target, beside what is per sample."""

    def __init__(self, form, targets):
        self.form, self.w = form, W[targets]

    def __call__(self, rows):
        x, y = (torch.stack(column) for column in zip(*rows, strict=True))
        return FORMS[self.form][0](x, y, self.w)


# How the batch is made, and how the step takes x, y and w from it.
FORMS = {
    "dict": (lambda x, y, w: {"x": x, "y": y, "w": w}, lambda b: (b["x"], b["y"], b["w"])),
    "first": (lambda x, y, w: {"w": w, "x": x, "y": y}, lambda b: (b["x"], b["y"], b["w"])),
    "tuple": (lambda x, y, w: (w, x, y), lambda b: (b[1], b[2], b[0])),
    "named": (lambda x, y, w: Fields(w, x, y), lambda b: (b.x, b.y, b.w)),
    "nested": (
        lambda x, y, w: {"a": {"w": [w]}, "b": [{"x": x}, (y,)]},
        lambda b: (b["b"][0]["x"], b["b"][1][0], b["a"]["w"][0]),
    ),
    "list": (
        lambda x, y, w: {"x": x, "y": y, "w": w.tolist()},
        lambda b: (b["x"], b["y"], torch.tensor(b["w"]).double()),
    ),
}


class WeightedTargets(Trainer):
    form = "dict"

    def train_step(self, batch):
        x, y, w = FORMS[self.form][1](batch)
        assert len(w) == y.shape[1]
        return {"loss": ((self.model(x) - y) ** 2 * w).mean()}

    test_step = train_step


def trained(kind, loader, targets=2, form="dict", epochs=2, **options):
    torch.manual_seed(1)
    model = nn.Linear(3, targets).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = kind(model, device="cpu", optimizer=optimizer, seed=0, log_bar=False, **options)
    trainer.form = form
    trainer.run(epochs, loader)
    return trainer


def by_hand(targets, epochs=2):
    torch.manual_seed(1)
    model, data = nn.Linear(3, targets).double(), samples(targets)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for start in range(0, 10, 4):
            x, y = (torch.stack(column) for column in zip(*data[start : start + 4], strict=True))
            optimizer.zero_grad()
            ((model(x) - y) ** 2 * W[targets]).mean().backward()
            optimizer.step()
    return weights(model)


@pytest.mark.parametrize("targets", [2, 4])  # as many as the last batch has samples, and as the others have
@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": n} for n in (1, 2, 3)] + [{"shards": 2}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_constant_as_long_as_a_batch_or_a_piece_is_not_cut(form, options, targets):
    loader = DataLoader(samples(targets), batch_size=4, collate_fn=Collate(form, targets))
    trainer = trained(WeightedTargets, loader, targets, form, **options)
    assert largest_difference(weights(trainer.model), by_hand(targets)) < 1e-15
    whole = trained(WeightedTargets, loader, targets, form)
    assert trainer.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-12)
    assert trainer.verify(loader)


def test_the_mean_of_an_epoch_weighs_samples_and_not_the_length_of_a_constant():
    loader = DataLoader(samples(2), batch_size=4, collate_fn=Collate("first", 2))
    losses = trained(WeightedTargets, loader, form="first", epochs=1)
    four, again, two = losses.get_loss_history()
    assert losses.history[-1]["train_loss"] == pytest.approx((4 * four + 4 * again + 2 * two) / 10, rel=1e-12)


@pytest.mark.usefixtures("starts_processes")
def test_workers_and_the_randomness_of_a_collate_function_make_no_difference():
    class Noisy(Collate):
        def __call__(self, rows):
            batch = super().__call__(rows)
            return batch | {"x": batch["x"] + torch.rand(())}

    kinds = [{}, {"num_workers": 1, "multiprocessing_context": "fork"}]
    loaders = [DataLoader(samples(2), batch_size=4, shuffle=True, collate_fn=Noisy("dict", 2), **k) for k in kinds]
    for loader in loaders:
        once, again = (trained(WeightedTargets, loader, gradient_accumulation_steps=2) for _ in range(2))
        assert_equal(weights(once.model), weights(again.model))  # the second one finds the decision made
    plain = trained(WeightedTargets, DataLoader(samples(2), 4, True, collate_fn=Noisy("dict", 2)))
    once = trained(WeightedTargets, loaders[0], gradient_accumulation_steps=2)
    assert largest_difference(weights(once.model), weights(plain.model)) < 1e-14


# ---------------------------------------------------------------------- batches that come as they are


def batches(sizes, targets=2, form="dict"):
    data, collate = iter(samples(targets, sum(sizes))), Collate(form, targets)
    return [collate([next(data) for _ in range(size)]) for size in sizes]


@pytest.mark.parametrize("form", ["dict", "first", "named"])
@pytest.mark.parametrize("sizes", [(4, 4, 2), (2, 4), (4, 2, 4)])
def test_the_batches_of_a_list_tell_each_other_apart(form, sizes):
    whole, cut = (
        trained(WeightedTargets, batches(sizes, form=form), form=form, gradient_accumulation_steps=n) for n in (1, 2)
    )
    assert largest_difference(weights(whole.model), weights(cut.model)) < 1e-15


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples(2))


def test_the_batch_size_of_a_stream_tells_its_samples():
    loader = DataLoader(Stream(), batch_size=4, collate_fn=Collate("first", 2))
    trainer = trained(WeightedTargets, loader, form="first", gradient_accumulation_steps=2)
    assert largest_difference(weights(trainer.model), by_hand(2)) < 1e-15


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([{"w": W[2], "x": torch.ones(4, 3)}] * 2, r"lengths differ: batch\['w'\] 2, batch\['x'\] 4"),
        ([{"w": W[2], "x": torch.ones(4, 3), "y": torch.ones(4)}] * 2, r"cannot tell which entries"),
        (batches((4, 4), 4), r"cannot tell whether batch\['w'\] is per sample: .* the same in every batch"),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_is_trained(loader, message):
    with pytest.raises(TypeError, match=message):
        trained(WeightedTargets, loader, 4, gradient_accumulation_steps=2)


class Wrapped:
    """Another loader's batches, with a constant beside them."""

    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        return ({**batch, "w": W[4]} for batch in self.inner)


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"shards": 2}], ids=str)
@pytest.mark.parametrize("form", ["dict", "first", "list"])
def test_a_constant_of_a_stream_is_refused_before_its_first_batch(form, options):
    loader = DataLoader(FourStreamed(), batch_size=4, collate_fn=Collate(form, 4))
    model = nn.Linear(3, 4).double()
    before = weights(model)
    trainer = WeightedTargets(model, device="cpu", optimizer=torch.optim.SGD(model.parameters()), **options)
    with pytest.raises(TypeError, match=r"cannot tell whether batch\['w'\] is per sample"):
        trainer.run(1, loader)
    assert_equal(weights(model), before)


class FourStreamed(IterableDataset):
    def __iter__(self):
        return iter(samples(4, 8))


class Whole(Dataset):
    """Its items are batches."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return batches((4, 4), 4)[index]


@pytest.mark.parametrize("kind", ["wrapped", "items"])
def test_a_constant_of_other_loaders_is_refused_at_the_second_batch(kind):
    plain = [{"x": batch["x"], "y": batch["y"]} for batch in batches((4, 4), 4)]
    loader = Wrapped(plain) if kind == "wrapped" else DataLoader(Whole(), batch_size=None)
    with pytest.raises(TypeError, match=r"cannot tell whether batch\['w'\] is per sample"):
        trained(Everywhere, loader, 4, gradient_accumulation_steps=2)


def test_targets_of_a_stream_are_cut():
    class Targets(IterableDataset):
        def __iter__(self):
            return iter([(x, y[0]) for x, y in samples(1, 8)])

    class Step(Trainer):
        def train_step(self, batch):
            return {"loss": ((self.model(batch[0])[:, 0] - batch[1]) ** 2).mean()}

    def collate(rows):
        return tuple(map(torch.stack, zip(*rows, strict=True)))

    whole, cut = (
        trained(Step, DataLoader(Targets(), 4, collate_fn=collate), 1, gradient_accumulation_steps=n) for n in (1, 2)
    )
    assert largest_difference(weights(whole.model), weights(cut.model)) < 1e-15


@pytest.mark.parametrize("kind", ["list", "generator", "items", "stream"])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_the_mean_of_an_epoch_weighs_samples_whoever_makes_the_batches(kind, count):
    w = torch.arange(1.0, count + 1).double()

    def collate(rows):
        x, y = (torch.stack(column) for column in zip(*rows, strict=True))
        return {"w": w, "x": x, "y": y}

    made = list(DataLoader(samples(2), 4, collate_fn=collate))
    loader = {
        "list": lambda: made,
        "generator": lambda: (batch for batch in made),
        "items": lambda: DataLoader(made, batch_size=None),
        "stream": lambda: DataLoader(Stream(), batch_size=4, collate_fn=collate),
    }[kind]()
    done = trained(Everywhere, loader, epochs=1)
    four, again, two = done.get_loss_history()
    assert done.history[-1]["train_loss"] == pytest.approx((4 * four + 4 * again + 2 * two) / 10, rel=1e-12)


def test_what_the_samples_share_may_stand_first():
    def shared(sizes):
        return ({"w": b["w"][None], "x": b["x"], "y": b["y"]} for b in batches(sizes))

    whole, cut = (trained(Counted, shared((4, 4, 2)), epochs=1, gradient_accumulation_steps=n) for n in (1, 2))
    assert largest_difference(weights(whole.model), weights(cut.model)) < 1e-15
    assert (whole.most, cut.most) == (4, 2)


class Everywhere(WeightedTargets):
    def train_step(self, batch):
        return {"loss": ((self.model(batch["x"]) - batch["y"]) ** 2 * batch["w"].sum()).mean()}


class Counted(Everywhere):
    most = 0

    def train_step(self, batch):
        self.most = max(self.most, len(batch["x"]))
        return super().train_step(batch)


def test_a_length_that_changes_its_meaning_is_refused():
    stream = (batch | {"w": batch["w"] * (i + 1)} for i, batch in enumerate(batches((4, 2), 4)))
    with pytest.raises(TypeError, match=r"batch\['w'\] had an entry for each sample before, and has 4 for 2 samples"):
        trained(Everywhere, stream, 4, epochs=1, gradient_accumulation_steps=2)


def test_verify_names_a_constant_that_is_cut_like_samples():
    model = nn.Linear(3, 4).double()
    found = Everywhere(model, device="cpu", optimizer=torch.optim.SGD(model.parameters()), log_bar=False).verify(
        batches((4,), 4)
    )
    assert not found
    assert found.cause.startswith("batch['w'] is cut like the samples, since it has as many entries as there are")


# ---------------------------------------------------------------------- what has its samples elsewhere


class Made(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, i):
        return torch.full((2 + i % 4, 3), float(i)).double()


def padded(rows):
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


REFUSED = {
    "time first": (lambda r: {"x": padded(r).transpose(0, 1), "y": torch.zeros(len(r))}, "samples along dimension 1"),
    "packed": (lambda r: {"x": torch.cat(r), "y": torch.zeros(len(r))}, r"\['x'\]: its length changes .*\(5 for 2"),
    "pieces": (lambda r: {"y": torch.zeros(len(r)), "x": list(torch.cat(r))}, r"\['x'\], a list whose length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_samples_along_another_dimension_are_refused(name):
    collate, message = REFUSED[name]
    with pytest.raises(TypeError, match=f"(?s)gradient_accumulation_steps=2 .*{message}"):
        trained(WeightedTargets, DataLoader(Made(), 3, collate_fn=collate), gradient_accumulation_steps=2)


def test_a_mask_as_wide_as_the_padded_samples_goes_with_each_piece():
    seen = []

    class Masked(Trainer):
        def train_step(self, batch):
            seen.append((len(batch["x"]), batch["mask"].shape))
            assert batch["mask"].shape == (batch["x"].shape[1],) * 2
            return {"loss": self.model(batch["x"]).mean()}

        test_step = train_step

    def collate(rows):
        x = padded(rows)
        return {"x": x, "mask": torch.ones(x.shape[1], x.shape[1]).tril()}

    trained(Masked, DataLoader(Made(), 4, collate_fn=collate), epochs=1, gradient_accumulation_steps=2)
    assert seen == [(2, (5, 5))] * 4 + [(1, (2, 2))]


class Captioned(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.full((3,), float(i)).double(), f"{i}", {"tags": [f"a{i}", f"b{i}"]}


@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_the_strings_of_the_usual_function_go_with_their_samples(batch_size):
    seen = []

    class Captions(Trainer):
        def train_step(self, batch):
            x, captions, more = batch
            first, second = more["tags"]
            assert [f"{int(v)}" for v in x[:, 0]] == list(captions)
            assert ([f"a{c}" for c in captions], [f"b{c}" for c in captions]) == (list(first), list(second))
            seen.extend(captions)
            return {"loss": self.model(x).mean()}

        test_step = train_step

    trained(Captions, DataLoader(Captioned(), batch_size), epochs=1, gradient_accumulation_steps=2)
    assert seen == list("012345")


RAGGED = [torch.randn(n, 3).double() for n in (5, 2, 7, 3)]
ODD = {
    "sparse_coo": lambda: torch.eye(4, 3).double().to_sparse(),
    "sparse_csr": lambda: torch.eye(4, 3).double().to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor(RAGGED),
    "jagged": lambda: torch.nested.nested_tensor(RAGGED, layout=torch.jagged),
}


class Odd(Trainer):
    def train_step(self, batch):
        x = batch["x"] if isinstance(batch, dict) else batch
        dense = x.unbind()[0] if x.is_nested else x.to_dense()
        return {"loss": (self.model(dense) ** 2).mean()}

    test_step = train_step


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_tensors_that_torch_cannot_cut_are_refused_with_a_sentence_and_work_whole(name, inside):
    odd = ODD[name]()
    batch = {"y": torch.zeros(4), "x": odd} if inside else odd
    trained(Odd, [batch, batch])
    where, kind = r"batch\['x'\]" if inside else "the batch", name.replace("jagged", "nested")
    for options in ({"gradient_accumulation_steps": 2}, {"shards": 2}):
        with pytest.raises(TypeError, match=rf"=2 cannot cut {where}, a {kind} tensor, which torch cannot cut along"):
            trained(Odd, [batch, batch], **options)


def test_a_constant_of_any_length_stays_whole():
    seen = set()

    class Sevens(Trainer):
        def train_step(self, batch):
            seen.add((len(batch["x"]), len(batch["seven"])))
            return {"loss": self.model(batch["x"]).square().mean() * batch["seven"].mean()}

    def collate(rows):
        return {"x": torch.stack([x for x, _ in rows]), "seven": torch.ones(7).double()}

    trained(Sevens, DataLoader(samples(2), batch_size=4, collate_fn=collate), gradient_accumulation_steps=2)
    assert seen == {(2, 7), (1, 7)}


def test_what_has_told_the_samples_once_tells_them_always():
    def batch(x, a, b):
        return {"a": torch.ones(a), "b": torch.ones(b), "x": torch.ones(x)}

    lengths = sizes_of(object())
    assert [lengths.count(each, 0) for each in (batch(3, 3, 3), batch(5, 3, 3), batch(3, 3, 4))] == [3, 5, 3]
