"""Copies that later steps do not change, in memory that is used again."""

import pytest
import torch

from zae_engine.checkpoint.snapshot import Snapshot


def test_copies_are_of_now():
    live = {"a": torch.ones(3), "b": torch.nn.Parameter(torch.ones(2, 2)), "scalar": torch.tensor(1.0)}
    copies = Snapshot().take(live)
    live["a"].zero_()
    live["b"].data.zero_()
    assert {name: copy.sum().item() for name, copy in copies.items()} == {"a": 3, "b": 4, "scalar": 1}
    assert not any(copy.requires_grad for copy in copies.values())
    assert all(type(copy) is torch.Tensor for copy in copies.values())


def test_buffers_are_used_again_while_shape_and_dtype_stay():
    snapshot = Snapshot()
    first = snapshot.take({"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(3), "gone": torch.ones(1)})
    second = snapshot.take({"a": torch.zeros(3), "b": torch.zeros(4), "c": torch.zeros(3).double()})
    assert second["a"] is first["a"]
    assert second["b"].shape == (4,)
    assert second["c"].dtype == torch.float64
    assert snapshot._buffers.keys() == {"a", "b", "c"}
    assert snapshot.take({"b": torch.ones(4)})["b"] is second["b"]
    assert torch.equal(second["b"], torch.ones(4))


def test_tied_tensors_are_copied_once_and_others_are_not():
    weight = torch.ones(4, 4)
    live = {"a": weight, "tied": torch.nn.Parameter(weight), "t": weight.t(), "row": weight[0], "e": torch.empty(0)}
    live["other empty"] = torch.empty(0)
    snapshot = Snapshot()
    for _ in range(2):
        copies = snapshot.take(live)
        assert copies["tied"] is copies["a"]
        assert len({id(copy) for copy in copies.values()}) == 5
    live["tied"] = torch.zeros(4, 4)  # no longer tied
    copies = snapshot.take(live)
    assert copies["a"].sum() == 16
    assert copies["tied"].sum() == 0


def test_what_is_tied_or_spread_anew_between_two_times_is_copied_as_it_is_now():
    snapshot, live = Snapshot(), {"a": torch.ones(2, 2), "b": torch.zeros(2, 2)}
    kept = snapshot.take(live)
    live["a"].data = torch.arange(4.0).view(2, 2).t()  # other memory and strides, in the same tensor
    turned = snapshot.take(live)
    assert turned["a"] is kept["a"]
    assert turned["a"].tolist() == [[0, 2], [1, 3]]
    live["b"] = live["a"]
    tied = snapshot.take(live)
    assert tied["b"] is tied["a"]
    live["b"] = torch.full((2, 2), 7.0)
    apart = snapshot.take(live)
    assert (apart["a"].tolist(), apart["b"].tolist()) == ([[0, 2], [1, 3]], [[7, 7], [7, 7]])


def test_a_tensor_of_a_class_with_methods_of_its_own_is_copied_too():
    class Named(torch.Tensor):
        pass

    live = {"a": torch.ones(2).as_subclass(Named), "b": torch.ones(3)}
    for value in (1.0, 2.0):
        live["a"].fill_(value)
        copies = Snapshot().take(live)
        assert type(copies["a"]) is torch.Tensor
        assert copies["a"].tolist() == [value, value]


def test_tensors_of_any_strides_and_views():
    whole = torch.arange(12.0).view(3, 4)
    turned = torch.tensor([1 + 2j]).conj()
    copies = Snapshot().take(
        {"t": whole.t(), "wide": whole[0].expand(3, 4), "conj": turned, "as it was": turned.conj()}
    )
    assert torch.equal(copies["t"], whole.t())
    assert torch.equal(copies["wide"], whole[0].expand(3, 4))
    assert copies["conj"].item() == 1 - 2j
    assert copies["as it was"].item() == 1 + 2j
    assert all(copy.is_contiguous() for copy in copies.values())


def test_what_no_file_can_hold_is_left_to_the_writing():
    odd = {"sparse": torch.ones(2).to_sparse(), "meta": torch.ones(2, device="meta")}
    copies = Snapshot().take(odd)
    assert copies["sparse"].is_sparse
    assert copies["meta"].is_meta


def test_a_snapshot_may_be_taken_in_inference_mode_and_out_of_it():
    snapshot, live = Snapshot(), torch.ones(2)
    with torch.inference_mode():
        snapshot.take({"a": live})
    assert snapshot.take({"a": live * 2})["a"].sum() == 4


def test_a_default_device_does_not_move_the_buffers():
    with torch.device("meta"):
        assert Snapshot().take({"a": torch.ones(2, device="cpu")})["a"].sum() == 2


@pytest.mark.gpu
def test_tensors_of_a_gpu_come_through_pinned_memory():
    live = {"a": torch.ones(1 << 20, device="cuda"), "b": torch.arange(6, device="cuda").view(2, 3).t()}
    snapshot = Snapshot()
    for _ in range(2):
        live["a"].mul_(2)
        copies = snapshot.take(live)
        wanted = {name: tensor.cpu() for name, tensor in live.items()}
        assert all(copy.is_pinned() and torch.equal(copy, wanted[name]) for name, copy in copies.items())
