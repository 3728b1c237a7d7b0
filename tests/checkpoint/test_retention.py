"""What is removed, and what never is."""

import os

import pytest

from tests.checkpoint.making import make, names, watched
from zae_engine.checkpoint.folder import committed, problems_of
from zae_engine.checkpoint.retention import retain


@pytest.fixture
def folder(tmp_path):
    for serial, value in enumerate([5, 1, 4, 2, 3, 9], 1):
        make(tmp_path, serial, **watched(value))
    return tmp_path


def serials(folder):
    return [checkpoint.serial for checkpoint in committed(folder)]


def damage(folder, *serials):
    for checkpoint in committed(folder):
        if checkpoint.serial in serials:
            (checkpoint.path / "state.json").write_bytes(bytes(300))


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [
        (1, 0, [6]),
        (2, 0, [5, 6]),
        (1, 1, [2, 6]),
        (2, 2, [2, 4, 5, 6]),
        (2, 3, [2, 4, 5, 6]),
        (9, 0, [1, 2, 3, 4, 5, 6]),
        (None, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_and_the_best_are_kept(folder, keep_last, keep_best, kept):
    assert retain(folder, keep_last, keep_best) == []
    assert serials(folder) == kept
    assert names(folder) == [f"{serial:06d}-step-{10 * serial}" for serial in kept]


def test_what_a_kept_one_refers_to_is_kept(folder):
    make(folder, 7, refers_to=[3])
    make(folder, 3, refers_to=[1, 99])
    assert retain(folder, 1) == []
    assert serials(folder) == [1, 3, 7]


def test_a_damaged_newest_one_keeps_the_newest_whole_one(folder):
    damage(folder, 6, 5)
    said = retain(folder, 1)
    assert serials(folder) == [4, 6]
    assert [words.split(":")[0] for words in said] == ["000006-step-60 is damaged", "000005-step-50 is damaged"]
    assert problems_of(folder / "000004-step-40") == []


def test_nothing_goes_when_none_is_whole(folder):
    damage(folder, *range(7))
    assert retain(folder, 1, 1)[-1] == "old checkpoints are kept, as none is whole"
    assert len(serials(folder)) == 6


def test_the_rest_of_an_earlier_removal_is_in_nobody_s_way(folder):
    os.rename(make(folder, 9), folder / ".000001-step-10.trash")
    assert retain(folder, 1) == []
    assert names(folder) == ["000006-step-60"]


def test_a_link_goes_and_not_what_it_points_to(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "kept"
    os.rename(folder / "000001-step-10", elsewhere)
    (folder / "000001-step-10").symlink_to(elsewhere)
    assert retain(folder, 1) == []
    assert names(folder) == ["000006-step-60"]
    assert (elsewhere / "manifest.json").is_file()


def test_what_is_foreign_stays(folder):
    (folder / "notes").mkdir()
    (folder / "000001-step-11").touch()
    retain(folder, 1)
    assert names(folder) == ["000001-step-11", "000006-step-60", "notes"]


@pytest.mark.parametrize(("keep_last", "keep_best"), [(0, 0), (-1, 0), (1, -1)])
def test_counts_that_are_too_small(folder, keep_last, keep_best):
    with pytest.raises(ValueError, match="keep_last is at least 1"):
        retain(folder, keep_last, keep_best)


def test_no_folder(tmp_path):
    assert retain(tmp_path / "nothing", 1) == []
