"""What is trained changes in a run, and something else is trained beside it: on one, two and three processes."""

import pytest
import torch

from tests.distributed.cases import SEVERAL, cases
from tests.distributed.conftest import STARTERS, start
from tests.distributed.test_invariance import assert_same, assert_same_rows, difference

THAWS = [name for name in cases() if name.startswith("thaw-")]
# After which step another model on another process is found, and what is said of it; of seven steps an epoch.
FOUND = {
    **dict.fromkeys(("in-step", "in-step-pieces", "in-step-shards", "in-optimize", "toggled"), (1, "'trainer.rival.")),
    **dict.fromkeys(("in-model", "in-model-first"), (1, "'rival.weight' is not the same on process 1")),
    "around": (1, "'OUTSIDE.weight' is not the same on process 1"),
    "lately": (7, "'trainer.rival.weight' is not the same on process 1"),
    "later": (14, "'trainer.rival.weight' is not the same on process 1"),
    "alone": (14, "'2.bias' is not the same on process"),
    "checkpointed": (1, "'first.weight' is not the same on process 1"),
}
BESIDE = "It is not in the trainer's optimizer, so something else changes it on each process by itself"
WITHIN = "So each process trains a model of its own: its gradient was not exchanged whole"


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", THAWS)
def test_thawing_and_freezing_give_the_model_of_one_process(results, name, processes):
    (wanted,) = results(name, 1)
    assert_same(results(name, processes), wanted, 0 if name == "thaw-shards" else 1e-14)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["gan-1", "gan-3", "gan-shards"])
def test_optimizers_that_take_turns_give_the_model_of_one_process(results, name, processes):
    (wanted,), found = results(name, 1), results(name, processes)
    assert all(
        difference(part["weights"], wanted["weights"]) <= (0 if name == "gan-shards" else 1e-14) for part in found
    )
    assert_same_rows(found, wanted)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_trained_on_each_process_by_itself_is_found(results, name, processes):
    assert results(f"several-{name}", 1)[0]["error_text"] == ""
    found = results(f"several-{name}", processes)
    if name == "frozen":
        assert all(part["error_text"] == "" for part in found)
        return
    step, words = FOUND[name]
    assert {part["error_text"] for part in found} == {found[0]["error_text"]}
    assert found[0]["error_text"].startswith(words)
    assert (WITHIN if name in ("alone", "checkpointed") else BESIDE) in found[0]["error_text"]
    assert {part["step"] for part in found} == {step}


@pytest.mark.parametrize("processes", [2, 3])
def test_what_changes_in_the_middle_of_an_epoch_is_refused_there(results, processes):
    for name, words in (
        ("suddenly-thawed", "'0.weight', '0.bias' of the model began to be trained in the middle of an epoch"),
        ("suddenly-thawed-last", "'0.weight', '0.bias' of the model began to be trained in the middle of an epoch"),
        ("suddenly-frozen", "'0.weight', '0.bias' of the model got frozen in the middle of an epoch"),
    ):
        assert results(name, 1)[0]["error_text"] == ""
        assert all(part["error_text"].startswith(words) for part in results(name, processes)), name


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_train_other_parameters_are_refused(results, processes):
    found = results("differently", processes)
    words = "whether '0.weight' is trained is True on process 0 and False on process 1"
    assert all(part["error_text"].startswith(words) for part in found)


def test_one_process_of_a_launcher_is_as_free_as_one_without(results, tmp_path):
    names = ["thaw-frozen", "thaw-back", "suddenly-frozen", "suddenly-thawed"]
    one = [*STARTERS[3][:-1], "1"]
    done = start(1, *one, "-m", "tests.distributed.worker", str(tmp_path), *names)
    assert done.returncode == 0, done.stderr
    for name in names:
        found = torch.load(tmp_path / f"{name}.0.pt", weights_only=False)
        assert difference(found["weights"], results(name, 1)[0]["weights"]) == 0
