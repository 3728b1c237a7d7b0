"""Weights to and from files."""

import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from zae_engine.checkpoint import WeightsError, load_weights, read_weights, save_weights

ENDINGS = [".safetensors", ".safetensor", ".ckpt", ".pt"]


class Net(nn.Sequential):
    """With parameters, float buffers and an integer buffer."""

    def __init__(self, width=3, seed=0):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
        self[1].running_mean.uniform_()
        self[1].num_batches_tracked += seed


class Tied(nn.Module):
    """The embedding and the head share one weight."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight


class Wrapping(nn.Module):
    """All of its own keys begin with ``module.``."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.module = nn.Linear(2, 2)


class WithExtraState(nn.Linear):
    def __init__(self, extra):
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class Malicious:
    """Unpickled by plain pickle, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_come_back_to_the_bit(tmp_path, ending):
    saved, fresh = Net(seed=1), Net(seed=2)
    save_weights(saved, tmp_path / f"w{ending}")
    load_weights(fresh, read_weights(tmp_path / f"w{ending}"))
    assert same(weights(fresh), weights(saved))
    assert [p.name for p in tmp_path.iterdir()] == [f"w{ending}"]


@pytest.mark.parametrize("ending", [".safetensors", ".safetensor"])
def test_safetensors_alone_loads_the_file(tmp_path, ending):
    saved, fresh = Net(seed=1), Net(seed=2)
    save_weights(saved, tmp_path / f"w{ending}")
    safetensors.torch.load_model(fresh, tmp_path / f"w{ending}")
    assert same(weights(fresh), weights(saved))


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin", ""])
def test_torch_alone_loads_the_file(tmp_path, ending):
    saved, fresh = Net(seed=1), Net(seed=2)
    save_weights(saved, str(tmp_path / f"w{ending}"))
    fresh.load_state_dict(torch.load(tmp_path / f"w{ending}", weights_only=True))
    assert same(weights(fresh), weights(saved))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_torch_saved_is_read(tmp_path, legacy):
    saved, fresh = Net(seed=1), Net(seed=2)
    torch.save(saved.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    load_weights(fresh, read_weights(str(tmp_path / "w.pt")))
    assert same(weights(fresh), weights(saved))


@pytest.mark.parametrize("ending", ENDINGS)
def test_tied_weights_come_back_and_are_still_tied(tmp_path, ending):
    saved, fresh = Tied(seed=1), Tied(seed=2)
    save_weights(saved, tmp_path / f"w{ending}")
    load_weights(fresh, read_weights(tmp_path / f"w{ending}"))
    assert same(weights(fresh), weights(saved))
    assert fresh.head.weight is fresh.embedding.weight


def test_tied_weights_load_with_safetensors_alone(tmp_path):
    saved, fresh = Tied(seed=1), Tied(seed=2)
    save_weights(saved, tmp_path / "w.safetensors")
    assert len(read_weights(tmp_path / "w.safetensors")) == 1
    safetensors.torch.load_model(fresh, tmp_path / "w.safetensors")
    assert same(weights(fresh), weights(saved))
    assert fresh.head.weight is fresh.embedding.weight


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "runs" / "first" / "w.pt"
    save_weights(Net(seed=1), path)
    save_weights(Net(seed=2), path)
    assert same(read_weights(path), weights(Net(seed=2)))
    assert [p.name for p in path.parent.iterdir()] == ["w.pt"]


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # torch's own, when it loads its compiler
def test_a_compiled_model_is_saved_and_loaded_under_its_own_keys(tmp_path):
    compiled, fresh = torch.compile(Net(seed=1)), torch.compile(Net(seed=2))
    save_weights(compiled, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), weights(Net(seed=1)))
    load_weights(fresh, read_weights(tmp_path / "w.pt"))
    assert same(weights(fresh), weights(compiled))


# ---------------------------------------------------------------------- files that cannot be taken


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    save_weights(Net(), tmp_path / "best_model.pt")
    near = re.escape(f"no file {str(tmp_path / 'best_modle.pt')!r}; did you mean {str(tmp_path / 'best_model.pt')!r}?")
    with pytest.raises(FileNotFoundError, match=near):
        read_weights(tmp_path / "best_modle.pt")
    with pytest.raises(FileNotFoundError, match=r"no file '.*zzz'$"):
        read_weights(tmp_path / "zzz")
    with pytest.raises(FileNotFoundError, match=r"no file '.*w\.pt'$"):
        read_weights(tmp_path / "nowhere" / "w.pt")


def damaged(tmp_path, ending, change, **settings):
    """The path of a file whose bytes went through `change`."""
    path = tmp_path / f"w{ending}"
    if settings:
        torch.save(Net().state_dict(), path, **settings)
    else:
        save_weights(Net(), path)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize("kept", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, ending, kept):
    path = damaged(tmp_path, ending, lambda content: content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match=re.escape(repr(str(path))) + ".*(cut short|damaged)"):
        read_weights(path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_file_without_its_last_byte_is_refused(tmp_path, ending):
    path = damaged(tmp_path, ending, lambda content: content[:-1])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        read_weights(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file_is_refused(tmp_path, ending):
    (tmp_path / f"w{ending}").touch()
    with pytest.raises(WeightsError, match="is damaged or cut short"):
        read_weights(tmp_path / f"w{ending}")


@pytest.mark.parametrize("kept", [1, 20, 100, 400, 1000, -1])
def test_an_old_torch_file_that_is_cut_short_is_refused(tmp_path, kept):
    path = damaged(tmp_path, ".pt", lambda content: content[:kept], _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"cut short|damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"hello world\n" * 40, b"<html></html>", b"\x00" * 500, b"PK\x03\x04" + b"0" * 99])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_file_of_another_kind_is_refused(tmp_path, ending, content):
    path = damaged(tmp_path, ending, lambda _: content)
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(path)


def test_a_file_with_damaged_names_is_refused(tmp_path):
    path = damaged(tmp_path, ".pt", lambda content: content.replace(b"0.weight", b"\xff\xfe.weight"))
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], {"a": 1}, {"model": {"a": torch.ones(1)}}, 3])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="does not hold a state_dict"):
        read_weights(tmp_path / "w.pt")


def test_a_whole_model_is_refused(tmp_path):
    torch.save(Net(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"more than tensors.*torch\.save\(model\.state_dict\(\), path\)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_code_of_a_pickle_is_run(tmp_path, form):
    path, trace = tmp_path / "w.pt", tmp_path / "trace"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    else:
        torch.save({"a": Malicious(trace)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"is refused: .* nothing of it was run"):
        read_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # so it would have been


# ---------------------------------------------------------------------- weights of another model


def test_missing_and_unexpected_keys_are_named_and_nothing_is_changed():
    model = Net(seed=1)
    before = weights(model)
    other = {"0.weight": torch.zeros(3, 4), "head.bias": torch.zeros(2)}
    message = r"w\.pt is of another model than this Net; missing: 0\.bias, .* and 3 more; unexpected: head\.bias$"
    with pytest.raises(WeightsError, match=message):
        load_weights(model, other, source="w.pt")
    assert same(weights(model), before)


@pytest.mark.parametrize("strict", [True, False])
def test_other_shapes_are_named_and_nothing_is_changed(strict):
    model = Net(width=3, seed=1)
    before = weights(model)
    with pytest.raises(
        WeightsError, match=r"another shape: 0\.weight \(5, 4\) for \(3, 4\), 0\.bias \(5,\) for \(3,\)"
    ):
        load_weights(model, Net(width=5, seed=2).state_dict(), strict=strict)
    assert same(weights(model), before)


def test_without_strict_the_keys_that_fit_are_taken():
    model = Net(seed=1)
    before = weights(model)
    load_weights(model, {"0.bias": torch.full((3,), 9.0), "other": torch.ones(1)}, strict=False)
    assert model[0].bias.tolist() == [9.0] * 3
    assert same(weights(model) | {"0.bias": before["0.bias"]}, before)


def test_a_tied_weight_that_is_not_there_at_all_is_missing():
    with pytest.raises(WeightsError, match=r"missing: embedding\.weight, head\.weight"):
        load_weights(Tied(), {})


def test_an_untied_model_does_not_take_half_of_the_weights():
    untied = Tied()
    untied.head.weight = nn.Parameter(torch.zeros(7, 3))
    with pytest.raises(WeightsError, match=r"missing: head\.weight$"):
        load_weights(untied, {"embedding.weight": torch.ones(7, 3)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrappers_are_taken_off(prefix):
    saved, fresh = Net(seed=1), Net(seed=2)
    load_weights(fresh, {prefix + key: value for key, value in saved.state_dict().items()})
    assert same(weights(fresh), weights(saved))


def test_a_model_whose_own_keys_begin_so_comes_back(tmp_path):
    saved, fresh = Wrapping(seed=1), Wrapping(seed=2)
    save_weights(saved, tmp_path / "w.pt")
    load_weights(fresh, read_weights(tmp_path / "w.pt"))
    assert same(weights(fresh), weights(saved))


def test_extra_state_of_a_module_is_taken():
    saved, fresh = WithExtraState({"steps": 3}), WithExtraState({"steps": 0})
    load_weights(fresh, saved.state_dict())
    assert fresh.extra == {"steps": 3}
    assert torch.equal(fresh.weight, saved.weight)


def test_what_was_saved_with_extra_state_is_read(tmp_path):
    fresh = WithExtraState({"steps": 0})
    save_weights(WithExtraState({"steps": 3}), tmp_path / "w.pt")
    load_weights(fresh, read_weights(tmp_path / "w.pt"))
    assert fresh.extra == {"steps": 3}


# ---------------------------------------------------------------------- whole or not at all


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "w.pt"
    save_weights(WithExtraState(torch.tensor(1)), path)
    old = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        save_weights(WithExtraState(lambda: None), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_an_interrupted_safetensors_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(Net(), path)
    old = path.read_bytes()
    with pytest.raises((AttributeError, ValueError, TypeError)):
        save_weights(WithExtraState("text"), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_target_that_is_a_folder_is_left_as_it_is(tmp_path, ending):
    target = tmp_path / f"w{ending}"
    target.mkdir()
    (target / "kept").touch()
    with pytest.raises(OSError, match=re.escape(target.name)):
        save_weights(Net(), target)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert (target / "kept").exists()
