"""The same model on one, two, three and four processes."""

from collections import defaultdict

import pytest
import torch

from tests.distributed.cases import LOADERS, TABLE, cases
from tests.distributed.conftest import start

pytestmark = pytest.mark.usefixtures("starts_processes")

LARGEST = {"f32-sgd": 1e-6, "f64-sgd": 1e-14, "f64-adamw": 1e-12}
SHARDS = [name for name in cases() if name.startswith("shards")]


def difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


def batches(found: list[dict]) -> dict[int, list[int]]:
    """The sample ids of each step, the processes' shares one after the other."""
    steps = defaultdict(list)
    for part in found:
        for step, ids in part["seen"]:
            steps[step] += ids
    return steps


def assert_same(found: list[dict], wanted: dict, largest: float) -> None:
    assert all(difference(part["weights"], wanted["weights"]) <= largest for part in found)
    assert all(difference(part["weights"], found[0]["weights"]) == 0 for part in found)
    assert batches(found) == batches([wanted])
    assert_same_rows(found, wanted)


def assert_same_rows(found: list[dict], wanted: dict) -> None:
    for part in found:
        assert len(part["rows"]) == len(wanted["rows"])
        for row, right in zip(part["rows"], wanted["rows"], strict=True):
            assert {**row, "seconds": 0} == pytest.approx({**right, "seconds": 0}, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("name", TABLE)
def test_processes_and_accumulation_change_nothing(results, name, processes):
    kind, number, optimizer, _ = name.split("-")
    (wanted,) = results(f"{kind}-{number}-{optimizer}-1", 1)
    found = results(name, processes)
    assert_same(found, wanted, LARGEST[f"{number}-{optimizer}"])
    epoch = [i for step, ids in batches(found).items() if step <= 57 for i in ids]
    assert sorted(epoch) == list(range(1797))  # each once, none left out


@pytest.mark.parametrize(("parts", "processes"), [(1, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_is_shared_out(results, name, parts, processes):
    (wanted,) = results(f"loader-{name}-1", 1)
    # Batches of one or two samples make many steps, each of which rounds.
    assert_same(results(f"loader-{name}-{parts}", processes), wanted, 1e-12 if "a-batch" in name else 1e-14)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_items_weigh_over_processes(results, parts, processes):
    for number, largest in (("f32", 1e-6), ("f64", 1e-14)):
        (wanted,) = results(f"weighted-1-{number}", 1)
        assert_same(results(f"weighted-{parts}-{number}", processes), wanted, largest)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", ["loader", "list"])
def test_a_constant_as_long_as_a_share_or_a_piece_is_not_cut(results, kind, processes):
    (wanted,) = results("constant-loader-1", 1)
    for how in ("1", "2", "shards"):
        assert_same(results(f"constant-{kind}-{how}", processes), wanted, 1e-14)


@pytest.mark.parametrize("processes", [2, 3])
def test_clipping_and_a_schedule_by_steps(results, processes):
    (wanted,) = results("clipped", 1)
    assert_same(results("clipped", processes), wanted, 1e-14)


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        pytest.param(n, p, marks=[pytest.mark.slow] if p == 4 else [])  # four processes on two cores
        for n in SHARDS
        for p in (2, 3, 4)
        if p < 4 or n[-2:] != "10"
    ],
)
def test_shards_are_equal_to_the_bit(results, name, processes):
    if processes == 3 and not name.endswith("12") and name != "shards-few":
        pytest.skip("3 does not divide the shards")
    (wanted,) = results(name, 1)
    if "seen" in wanted:
        assert_same(results(name, processes), wanted, 0.0)
    else:
        assert all(difference(part["weights"], wanted["weights"]) == 0 for part in results(name, processes))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("parts", [1, 3])
def test_fully_sharded_models(results, parts, processes):
    (wanted,) = results("fsdp2-1", 1)
    found = results(f"fsdp2-{parts}", processes)
    assert_same(found, wanted, 1e-12)


def test_a_batch_of_each_process(results):
    (wanted,) = results("per-process", 1)
    for parts in ("", "-3"):
        assert_same(results(f"per-process{parts}", 2), wanted, 1e-14)
        on_three = results(f"per-process{parts}", 3)
        assert [len(ids) for ids in batches(on_three).values()] == [96, 96, 11] * 2
        assert sorted(i for step in (1, 2, 3) for i in batches(on_three)[step]) == list(range(203))


@pytest.mark.parametrize("processes", [2, 3])
def test_a_sampler_that_draws_by_itself_gives_each_sample_once(results, processes):
    found = results("own-sampler", processes)
    assert sorted(i for step, ids in batches(found).items() if step <= 7 for i in ids) == list(range(203))
    assert difference(found[0]["weights"], found[1]["weights"]) == 0


@pytest.mark.parametrize("processes", [2, 3])
def test_a_distributed_sampler_is_taken_for_its_order(results, processes):
    (wanted,) = results("distributed-sampler", 1)
    found = results("distributed-sampler", processes)
    assert_same(found, wanted, 1e-14)
    assert batches(found)[1] != batches(found)[8]  # set_epoch was called
    assert all(len(part["said"]) == 1 and "DistributedSampler is taken for its order only" in part["said"][0]
               for part in found[:1])  # fmt: skip


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_evaluation_is_exact_to_the_last_sample(results, size, processes):
    (wanted,) = results(f"evaluation-{size}", 1)
    assert wanted["rows"][0]["test_loss"] == pytest.approx(13.0, rel=1e-7)
    for part in results(f"evaluation-{size}", processes):
        assert part["rows"][0]["test_loss"] == pytest.approx(13.0, rel=1e-7)
        assert part["losses"] == pytest.approx(wanted["losses"], rel=1e-6)
        for key in ("whole", "names", "inference"):
            assert part[key] == wanted[key]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["metrics", "metrics-sets"])
def test_metric_objects(results, name, processes):
    (wanted,) = results(name, 1)
    assert {"test_top", "test_auc", "test_all_MulticlassAccuracy", "train_top"} <= set(wanted["rows"][0])
    assert_same_rows(results(name, processes), wanted)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_stop_together(results, processes):
    for name, reason in (
        ("stopped-by-one", "enough"),
        ("stopped-by-clock", "1.5 s are over"),
        ("stopped-by-nan", "the loss is "),
    ):
        found = results(name, processes)
        assert all(part == found[0] for part in found)
        assert found[0]["reason"] == reason
    assert 5 < results("stopped-by-one", processes)[0]["steps"] < 600


@pytest.mark.parametrize("processes", [2, 3])
def test_one_model_and_one_file(results, processes):
    found = results("files", processes)
    assert [part["main"] for part in found] == [True] + [False] * (processes - 1)
    assert len({part["seed"] for part in found}) == 1
    for name in ("other-weights", "other-weights-shards"):
        (wanted,) = results(name, 1)
        assert all(difference(part["weights"], wanted["weights"]) == 0 for part in results(name, processes))


@pytest.mark.parametrize("name", ["swapped", "swapped-fsdp2"])
@pytest.mark.parametrize("processes", [2, 3])
def test_what_was_judged_is_what_is_saved(results, name, processes):
    for part in results(name, processes):
        assert difference(part["saved"], part["judged"]) == difference(part["again"], part["judged"]) == 0
        assert difference(part["live"], part["judged"]) > 0


@pytest.mark.parametrize("processes", [2, 3])
def test_what_cannot_be_shared_out_is_refused(results, processes):
    sentences = {
        "length": r"the loader's length is 4 on process 0 and 5 on process 1",
        "stream": "the loader gives process 1 another first batch than process 0",
        "valid": "the length of valid_loader '' is 2 on process 0 and 'not there' on process 1",
        "counted": "train_step returned 'num_items' now, but did not in the epoch's first step",
        "shards": f"shards={3 * processes + 1} cannot be shared out evenly over {processes} processes; start 1",
        "prepared": f"a DataLoaderShard, which Accelerate has prepared for one of {processes} processes",
        "data": "the first sample of the loader's OtherData is not the same on every process",
        "on-first": "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'",
        "on-first-own": "OwnError: a disk of its own kind",
        "split": "Subset.indices of the loader's data are not the same on process 0 (150 (",
        "uncut": f"training on {processes} processes needs batches that can be cut",
    }
    for kind, sentence in sentences.items():
        assert all(sentence in part["error_text"] for part in results(f"refused-{kind}", processes)), kind


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_other_data_are_refused_on_every_process_alike(results, processes):
    found = results("other-data", processes)
    assert {part["refused"] for part in found} == {found[0]["refused"]}
    assert "the loader: other samples: " in found[0]["refused"]
    assert [part["rows"] for part in found] == [2] * processes


def test_parameters_without_a_part_in_the_loss(results, tmp_path):
    for processes in (2, 3):
        assert_same(results("unused", processes), results("unused", 1)[0], 1e-14)
    done = start(2, "-m", "tests.distributed.worker", str(tmp_path), "unused-unsaid")
    assert done.returncode != 0
    assert "give kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)]" in done.stderr


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["nested", "without-items-1", "without-items-3"])
def test_walks_within_walks_and_batches_without_items(results, name, processes):
    (wanted,) = results(name.replace("-3", "-1"), 1)
    assert_same(results(name, processes), wanted, 1e-14)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_first_process_s_own_values_are_kept(results, processes):
    values = [(2, {"rank": 0.0}), (4, {"rank": 0.0}), (6, {"rank": 0.0}), (7, {"final": 1.0})]
    assert results("own-values", processes) == [{"logged": values, "kept": False}] * processes


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_one_model_is_evaluated(results, processes):
    for part in results("one-model", processes):
        assert part["reported"] == pytest.approx(part["real"], rel=1e-9)


@pytest.mark.parametrize("processes", [2, 3])
def test_validations_within_an_epoch(results, processes):
    (wanted,) = results("within-epoch", 1)
    assert len(wanted["rows"]) == 8
    assert_same(results("within-epoch", processes), wanted, 1e-14)


@pytest.mark.parametrize("processes", [2, 3])
def test_mixed_precision_differs_by_its_own_rounding(results, processes):
    (wanted,) = results("bf16", 1)
    found = results("bf16", processes)
    assert batches(found) == batches([wanted])
    assert 0 < difference(found[0]["weights"], wanted["weights"]) < 1e-2


def test_the_weights_are_not_those_of_an_untrained_model(results):
    """Nothing above could fail if nothing had been trained."""
    (one,) = results("mlp-f64-sgd-1", 1)
    (other,) = results("mlp-f64-adamw-1", 1)
    assert difference(one["weights"], other["weights"]) > 1e-2
    assert torch.tensor([row["test_acc"] for row in one["rows"]]).min() > 0.5
