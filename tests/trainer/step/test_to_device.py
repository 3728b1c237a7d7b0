"""How a batch gets to the device: what is copied on a stream of its own, and that nothing else changes.

What that stream does on a GPU is in tests/test_gpu.py; the CPU's streams do nothing.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from tests.helpers import assert_equal, loader, make, mlp, weights
from tests.trainer.addons.resumed import Drawing, assert_resumes, build
from zae_engine.trainer.nested_values import leaves
from zae_engine.trainer.step.to_device import copy_plain, send_beside

CPU, META = torch.device("cpu"), torch.device("meta")  # the second is one that every machine has


class Beside(Drawing):
    """Batches go by the CPU's other stream."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._place.moves, self._place.send = True, self._sent
        self.sent = 0

    def _sent(self, batch):
        self.sent += 1
        return send_beside(batch, CPU)


def test_plain_tensors_of_the_host_are_copied():
    sent, batch = [], {"x": torch.ones(2), "pair": (torch.zeros(3), [torch.ones(1), "name", 3])}
    placed = copy_plain(batch, META, sent)
    assert [leaf.device.type for leaf in leaves(placed) if isinstance(leaf, torch.Tensor)] == ["meta"] * 3
    assert all(one is other for one, other in zip(sent, [*leaves(placed)][:3], strict=True))
    assert [*leaves(placed)][3:] == ["name", 3]


@pytest.mark.parametrize(
    "left",
    [
        torch.ones(2, device="meta"),
        torch.ones(2, requires_grad=True),
        torch.eye(2).to_sparse(),
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        nn.Parameter(torch.ones(2), requires_grad=False),
        pack_sequence([torch.ones(2), torch.ones(1)]),
    ],
    ids=["on a device", "with a graph", "sparse", "nested", "of a class of its own", "an object with to()"],
)
def test_whatever_else_there_is_keeps_to_the_order_of_the_steps(left):
    sent = []
    assert copy_plain([left], META, sent)[0] is left
    assert sent == []


def test_what_is_left_is_placed_as_well():
    class Graph:
        def to(self, device):
            return self, device

    graph, x = Graph(), torch.ones(2)
    placed = send_beside({"graph": graph, "x": x}, CPU)
    assert placed["graph"] == (graph, CPU)
    assert placed["x"] is x


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3}, {"shards": 4}])
def test_training_and_inference_are_the_same(options):
    def trained(kind):
        trainer = make(kind, model=mlp(0.3), seed=5, **options)
        trainer.run(2, loader(shuffle=True), loader(20))
        return trainer, trainer.inference(loader(20))

    (trainer, outputs), (usual, wanted) = trained(Beside), trained(Drawing)
    assert_equal(weights(trainer.model), weights(usual.model))
    assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True))
    assert trainer.sent == 2 * 6 + 2 * 3 + 3


def test_a_run_goes_on_from_each_of_its_steps(tmp_path):
    def script(folder):
        trainer = build(folder, Beside)
        trainer.run(2, loader(21, shuffle=True), loader(10), valid_every="2st", resume="auto")
        return trainer

    assert assert_resumes(tmp_path, script) == 6


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_the_variable_changes_nothing_on_the_cpu(monkeypatch, value):
    monkeypatch.setenv("ZAE_COPY_STREAM", value)
    sent = make()._place.send
    assert isinstance(sent, partial)
    assert sent([1]) == [1]


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv("ZAE_COPY_STREAM", "yes")
    with pytest.raises(ValueError, match=r"ZAE_COPY_STREAM='yes' is neither '1' nor '0'; write ZAE_COPY_STREAM=1"):
        make()
