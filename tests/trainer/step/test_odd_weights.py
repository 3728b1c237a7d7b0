"""Weights of every kind that torch can hold, and models whose parts are compiled: in files, and in resumes."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.helpers import PlainTrainer, loader, make
from zae_engine.checkpoint import WeightsError, load_weights, read_weights, save_weights
from zae_engine.checkpoint.documents import read_tensors
from zae_engine.checkpoint.folder import choose
from zae_engine.checkpoint.weights import own_state
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.journal import settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch's own, when it compiles
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),  # torch's own, when it loads its compiler
]


def of_bits(dtype, *shape):
    return torch.arange(math.prod(shape) * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(shape)


def sparse(layout, **more):
    def made():
        dense = torch.zeros(4, 6)
        dense[0, 1], dense[3, 5] = 2.0, 3.0
        return dense.to_sparse(layout=layout, **more)

    return made


ODD = {
    "cut": lambda: torch.randn(10, 4)[:6],
    "column": lambda: torch.randn(6, 4)[:, 1],
    "step": lambda: torch.randn(12)[::2],
    "transposed": lambda: torch.randn(3, 5).t(),
    "permuted": lambda: torch.randn(2, 3, 4).permute(2, 0, 1),
    "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.randn(1, 4).expand(3, 4),
    "one number": lambda: torch.tensor(3.0),
    "empty": lambda: torch.zeros(0, 3),
    "conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
    "half": lambda: torch.randn(3).half(),
    "bfloat": lambda: torch.randn(3).bfloat16(),
    "bool": lambda: torch.tensor([True, False]),
    "complex64": lambda: torch.randn(3, dtype=torch.complex64),
    "complex128": lambda: torch.randn(3, dtype=torch.complex128),
    **{name: lambda name=name: of_bits(getattr(torch, name), 3) for name in dir(torch) if name.startswith("float8_")},
    "sparse coo": sparse(torch.sparse_coo),
    "sparse csr": sparse(torch.sparse_csr),
    "sparse csc": sparse(torch.sparse_csc),
    "sparse bsr": sparse(torch.sparse_bsr, blocksize=(2, 3)),
    "sparse bsc": sparse(torch.sparse_bsc, blocksize=(2, 3)),
}
ODD = {name: made for name, made in ODD.items() if name != "float8_e8m0fnu" or hasattr(torch, name)}


class Net(nn.Module):
    """An MLP with an odd tensor in it, as a buffer or, where it can be trained, as a parameter."""

    def __init__(self, kind, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(8, 4), nn.Linear(4, 3)
        odd = ODD[kind]()
        if (
            odd.is_floating_point()
            and odd.layout == torch.strided
            and odd.dtype == torch.float32
            and kind != "expanded"
        ):
            self.odd = nn.Parameter(odd)
        else:
            self.register_buffer("odd", odd)

    def forward(self, x):
        used = self.odd.sum() if isinstance(self.odd, nn.Parameter) else 0.0
        return self.head(self.body(x)) + used


def same(one, other):
    if one.layout != torch.strided or other.layout != torch.strided:
        return torch.equal(one.to_dense(), other.to_dense())
    raw = [t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for t in (one, other)]
    return one.shape == other.shape and torch.equal(*(t.view(torch.uint8) if t.numel() else t for t in raw))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", ODD)
def test_whatever_torch_holds_is_saved_and_comes_back(tmp_path, kind, suffix):
    model, path = Net(kind), tmp_path / f"m{suffix}"
    with torch.no_grad():
        model.head.weight.fill_(2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_weights(model, path)
    alone = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert alone.keys() == before.keys()
    assert all(same(alone[name], value) for name, value in before.items() if value.dtype != torch.complex128)
    assert path.stat().st_size < 4000
    fresh = Net(kind, seed=1)
    load_weights(fresh, read_weights(path))
    after = fresh.state_dict()
    assert all(same(after[name], value) for name, value in before.items())
    assert {name: (v.dtype, v.layout) for name, v in after.items()} == {
        name: (v.dtype, v.layout) for name, v in before.items()
    }


def trained(folder, model, epochs=1, **options):
    trainer = make(PlainTrainer.add_on(StateManagerAddon), model=model, save_path=folder)
    trainer.run(epochs, loader(), loader(), **options)
    return trainer


SOME = ("cut", "expanded", "transposed", "one number", "empty", "conjugate", "complex128", "sparse coo", "sparse bsr")


@pytest.mark.parametrize("kind", SOME)
def test_a_training_with_it_is_saved_and_gone_on_with(tmp_path, kind):
    whole = trained(tmp_path / "whole", Net(kind), 2)
    trained(tmp_path / "run", Net(kind))
    found = choose(tmp_path / "run" / "checkpoints")[0]
    assert (
        same(load_file(found.file("model.safetensors"))["odd"], read_tensors(found.file("model.safetensors"))["odd"])
        or kind == "complex128"
    )
    resumed = trained(tmp_path / "run", Net(kind, seed=1), 2, resume="auto")
    assert all(same(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    resumed.save_model(tmp_path / "m.safetensors")
    resumed.apply_weights()
    resumed.apply_weights(tmp_path / "m.safetensors")
    resumed.apply_weights(tmp_path / "run" / "model.safetensors")
    assert all(same(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())


def test_weights_that_share_memory_are_each_there(tmp_path):
    store = torch.randn(10)
    model = nn.ParameterDict({"first": store[:6], "second": store[4:], "whole": store, "tied": store})
    model["tied"] = model["whole"]
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for suffix in (".safetensors", ".pt"):
        save_weights(model, tmp_path / f"m{suffix}")
        fresh = nn.ParameterDict({name: torch.zeros_like(value) for name, value in wanted.items()})
        fresh["tied"] = fresh["whole"]
        load_weights(fresh, read_weights(tmp_path / f"m{suffix}"))
        assert all(torch.equal(fresh[name], value) for name, value in wanted.items())
    assert len(load_file(tmp_path / "m.safetensors")) == 3


def test_what_no_file_can_hold_is_named_and_nothing_is_left(tmp_path):
    model = nn.Linear(2, 2)
    for odd, said in (
        (torch.ones(2, device="meta"), "on meta"),
        (
            torch.sparse_coo_tensor([[0], [0]], [1.0], (10**5, 10**5), check_invariants=True),
            r"sparse, and would take 40\.0 GB.*'\.ckpt'",
        ),
    ):
        model.register_buffer("odd", odd)
        with pytest.raises(WeightsError, match=f"m.safetensors' is not written: 'odd' is .*{said}"):
            save_weights(model, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
    save_weights(model, tmp_path / "m.ckpt")
    assert read_weights(tmp_path / "m.ckpt")["odd"].shape == (10**5, 10**5)


# -- compiled parts --


class Parts(nn.Module):
    """Of which none, some or all parts are compiled, one within another one."""

    def __init__(self, compiled=(), seed=0):
        super().__init__()
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        inner = compile_(inner) if "inner" in compiled else inner
        body = nn.Sequential(inner, nn.ReLU())
        self.body = compile_(body) if "body" in compiled else body
        head = nn.Linear(8, 3)
        self.head = compile_(head) if "head" in compiled else head
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x))


def compile_(module):
    return torch.compile(module, backend="eager")


def parts(compiled, seed=0):
    model = Parts(compiled, seed)
    return compile_(model) if "all" in compiled else model


NAMES = sorted(Parts().state_dict())
COMPILED = [("body",), ("inner",), ("body", "inner", "head"), ("all",), ("all", "inner", "head")]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("compiled", COMPILED, ids="+".join)
def test_files_have_the_names_of_the_uncompiled_model(tmp_path, compiled, suffix):
    path = tmp_path / f"m{suffix}"
    for one, other in ((compiled, ()), ((), compiled), (compiled, compiled), (compiled, ("head",))):
        model, fresh = parts(one), parts(other, seed=1)
        save_weights(model, path)
        assert sorted(read_weights(path)) == NAMES
        load_weights(fresh, read_weights(path))
        load_weights(fresh, torch.nn.Module.state_dict(model))  # with `_orig_mod` in the names, as others write them
        assert all(torch.equal(value, own_state(fresh)[name]) for name, value in own_state(model).items())


@pytest.mark.parametrize("compiled", COMPILED, ids="+".join)
def test_a_run_goes_on_whichever_parts_are_compiled(tmp_path, compiled):
    whole = trained(tmp_path / "whole", parts(()), 2)
    for folder, one, other in (("there", compiled, ()), ("back", (), compiled)):
        first = parts(one)
        trained(tmp_path / folder, first)
        found = choose(tmp_path / folder / "checkpoints")[0]
        assert sorted(read_tensors(found.file("model.safetensors"))) == NAMES
        resumed = trained(tmp_path / folder, parts(other, seed=1), 2, resume="auto")
        assert sorted(resumed.weight_buffer["weight"][-1]) == NAMES
        assert all(torch.equal(v, own_state(whole.model)[k]) for k, v in own_state(resumed.model).items())
        resumed.apply_weights()
        resumed.apply_weights(tmp_path / folder / "model.safetensors")
        make(model=parts(one, seed=2), mode="test", optimizer=None).apply_weights(
            tmp_path / folder / "model.safetensors"
        )


def test_equal_blocks_of_a_list_may_be_compiled_one_by_one(tmp_path):
    """A list's text has equal modules in one line, as long as they are equal."""

    def blocks(*compiled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 3))
        model.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)])
        for number in compiled:
            model.blocks[number] = compile_(model.blocks[number])
        model.forward = lambda x: model[0](model.blocks[0](x))
        return model

    text = settings._described(blocks())
    assert "4 x Sequential" in text
    for compiled in ((0,), (1, 2), (0, 1, 2, 3)):
        model = blocks(*compiled)
        before = repr(model)
        assert settings._described(model) == text
        assert settings._described(compile_(model)) == text
        assert repr(model) == before


def test_verify_names_what_is_compiled_by_its_own_name():
    found = make(model=parts(("all", "body", "inner", "head"))).verify(loader())
    assert "_orig_mod" not in str(found)
    assert not found


@pytest.mark.filterwarnings("ignore:.* stays in eval")
def test_a_part_in_eval_stays_so_whichever_is_compiled(tmp_path):
    for folder, one, other in (("there", ("inner",), ()), ("back", (), ("inner",))):
        first, second = parts(one), parts(other, seed=1)
        for model in (first, second):
            model.body[0].eval()
        trained(tmp_path / folder, first)
        resumed = trained(tmp_path / folder, second, 2, resume="auto")
        tracked = {k: v for k, v in own_state(resumed.model).items() if "tracked" in k}
        assert [int(v) for v in tracked.values()] == [0]


def test_a_name_of_the_users_own_stays():
    model = nn.Module()
    model._orig_mod = nn.Linear(2, 2)
    model.weight, model.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    assert len(own_state(model)) == 2  # of what looks compiled, the module behind counts
    nest = nn.ModuleDict({"a": model})
    assert sorted(own_state(nest)) == ["a._orig_mod.bias", "a._orig_mod.weight", "a.bias", "a.weight"]
