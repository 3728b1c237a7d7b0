"""The picture of the house is up to date."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import draw_house  # noqa: E402


def test_the_picture_is_what_the_imports_say():
    drawn = draw_house.PICTURE.read_text(encoding="utf-8")
    assert drawn == draw_house.draw(), "run: python docs/draw_house.py"


def test_every_module_is_in_the_picture():
    drawn = draw_house.draw()
    for name in draw_house.modules():
        assert name.rpartition("/")[2] in drawn
