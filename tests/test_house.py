"""The picture of the house is up to date, and both pages about it name what is there."""

import functools
import re
import sys
from pathlib import Path

import pytest

from zae_engine.trainer.loop.run_status import TRANSITIONS, Standing

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import draw_house  # noqa: E402

drawn = functools.cache(draw_house.draw)
graph = functools.cache(lambda: draw_house.graph(draw_house.modules()))

PAGES = ("design.md", "design-ko.md")
ROOM = re.compile(r"(?m)^### `(\S+/)`.*\n+((?:.*\n)*?)(?=^#|\Z)")
HEAD = re.compile(r"(?m)^(#+)(?: (`\S+`))?")  # its depth, and the room that it is about
KINDS = {".py", ".html", ".css", ".js"}


def page_of(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows_of(text):
    """The cells of the tables in a text, without their heads."""
    lines = re.findall(r"(?m)^\|(.*)\|$", text)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def files_in(room):
    folder = draw_house.PACKAGE / room.removeprefix("zae_engine/")
    return sorted(path.name for path in folder.iterdir() if path.suffix in KINDS and path.name != "__init__.py")


def test_the_picture_is_what_the_imports_say():
    assert draw_house.PICTURE.read_text(encoding="utf-8") == drawn(), "run: python docs/draw_house.py"


def test_every_module_is_in_the_picture():
    for name in draw_house.modules():
        assert name.rpartition("/")[2] in drawn()


def test_no_arrow_passes_behind_a_room():
    depth = draw_house.depths(graph())
    places = draw_house.columns(draw_house.links(graph(), depth), depth)
    for room, row in depth.items():
        others = [x for (name, at), x in places.items() if at == row and name != room]
        assert all(abs(x - places[room, row]) > draw_house.BOX / 2 for x in others), room


@pytest.mark.parametrize("page", PAGES)
def test_every_file_is_in_the_table_of_its_room(page):
    rooms = dict(ROOM.findall(page_of(page)))
    folders = {path.parent for path in draw_house.PACKAGE.rglob("*.py")} - {draw_house.PACKAGE}
    assert rooms.keys() == {f"{folder.relative_to(draw_house.PACKAGE)}/" for folder in folders} | {"zae_engine/"}
    for room, text in rooms.items():
        named = [name for row in rows_of(text) for name in re.findall(r"`(\S+)`", row[0])]
        assert sorted(named) == files_in(room), room


@pytest.mark.parametrize("page", PAGES)
def test_no_file_is_named_that_is_not_there(page):
    paths = {f"/{path.relative_to(ROOT)}" for path in draw_house.PACKAGE.rglob("*.py")}
    for name in re.findall(r"[\w/]+\.py\b", page_of(page)):
        assert (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in paths), name


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_transitions_is_what_the_code_has(page):
    table = next(rows for rows in map(rows_of, re.split(r"\n\n", page_of(page))) if rows and "pass over" in rows[0])
    found = {
        (event, line[0].partition(":")[0], after)
        for line in table[2:]
        for event, after in zip(table[0][1:], line[1:], strict=True)
        if after
    }
    assert found == {(e, a.name, b.name) for e, ways in TRANSITIONS.items() for a, b in ways.items()}
    assert [line[0].partition(":")[0] for line in table[2:]] == [standing.name for standing in Standing]


def test_both_pages_have_the_same_sections():
    english, korean = (re.sub(r"```.*?```", "", page_of(page), flags=re.DOTALL) for page in PAGES)
    assert re.findall(HEAD, english) == re.findall(HEAD, korean)
