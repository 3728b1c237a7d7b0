"""A report is a page that a browser opens without any network, with everything drawn, on a laptop and on a phone."""

import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from tests.checkpoint.making import make
from tests.logs.browser import CHROMIUM, Browser
from tests.logs.making import STARTED, attempt, checkpoint, end, long_run, note, point, row, steps, write
from zae_engine.cli import main
from zae_engine.logs.curves import draw_curves
from zae_engine.logs.reading import read_run
from zae_engine.logs.report import names_of, render, write_report

pytestmark = pytest.mark.skipif(find_spec("plotly") is None, reason="a report needs plotly")

DRAWN = """[...document.querySelectorAll(".plot")].map(plot =>
  plot.matches(".js-plotly-plot") && plot.querySelectorAll("svg.main-svg .scatterlayer path.js-line").length > 0)"""
LONG = "a-name-without-any-place-to-break-it-at-" * 3


def first(folder, monitor="loss (min)", lr="0.001"):
    """A run that was resumed at step 40, with everything that a report shows."""
    losses = [1 / i for i in range(1, 41)]
    lines = [attempt(), steps(1, loss=losses, grad_norm=losses), point(40, time=STARTED + 60, all=60.0, data=30.0),
             row(0, 40, 0.5, test_acc=0.75), checkpoint(40), attempt(2, after=5, step=40, time=STARTED + 100),
             steps(41, 2, loss=[0.02, "nan", 0.01]), row(1, 43, 0.25, test_acc=0.5),
             end(step=43, time=STARTED + 110, memory={"host": 5e8}, loader={"num_workers": 0})]  # fmt: skip
    settings = {"model": "Linear(\n  8, 3)", "the optimizer": {"class": "AdamW", "lr": lr}, LONG: LONG,
                "parameters": {"w": "(8, 3) float32", "b": "(3,) float32 frozen"}}  # fmt: skip
    write(folder, lines, [note(monitor, settings), note(monitor, settings, attempt=2)])
    make(folder / "checkpoints", 4, best={"epoch": 1, "serial": 4}, metrics={"test_loss": 0.25})
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def text_of(page):
    """What stands in a page, without the parts that are code."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", "", page)))


def drawn_in(page):
    return json.loads(re.search(r'(?s)id="drawn">(.*?)</script>', page)[1])


def test_a_page_tells_what_matters(tmp_path):
    said = text_of(render([read_run(first(tmp_path / "first"))]))
    for part in ("lowest test_loss 0.25 epoch 2, step 43 saved in model.safetensors", "duration 1 min 10 s 2 attempts",
                 "waiting for data 50% 30 s", "train: 1 of 43 values is NaN or infinite, and a gap",
                 "50% of the time went to waiting for data", "num_workers", "000004-step-40 best", "peak memory 500 MB",
                 "optimizer: lr 0.001", "27 in 2 tensors, 1 of them frozen", "host tower"):  # fmt: skip
        assert part in said, (part, said)


def test_every_value_has_its_curve(tmp_path):
    page = render([read_run(first(tmp_path / "first"))])
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", page)
    assert titles == ["loss", "acc", "gradient norm", "learning rate"]
    raw, train, test, resumes, kept = drawn_in(page)[0]["data"]
    assert (raw["x"], raw["y"][39:]) == (list(range(1, 44)), [0.025, 0.02, None, 0.01])
    assert (train["name"], test["name"], test["x"], test["y"]) == ("train", "test", [40, 43], [0.5, 0.25])
    assert train["y"][41] is None
    assert (resumes["x"], kept["x"]) == ([40, 40, None], [40, 40, None])


def test_of_several_runs_only_what_differs_is_in_sight(tmp_path):
    folders = [first(tmp_path / name, lr=lr) for name, lr in (("a", "0.001"), ("b", "0.01"), ("c", "0.1"))]
    page = render([read_run(folder) for folder in folders])
    differing, rest = text_of(page).split("What differs")[1].split("Curves")
    assert differing.split() == ["a", "b", "c", "optimizer:", "lr", "0.001", "0.01", "0.1"]
    assert "optimizer: class AdamW AdamW AdamW" in rest
    for figure in drawn_in(page):
        colours = {(trace["meta"], trace["line"]["color"]) for trace in figure["data"]}
        assert len(colours) == 3, "a run has one colour, in every figure the same"
    assert len({figure["data"][0]["line"]["color"] for figure in drawn_in(page)}) == 1


def test_names_are_text_wherever_they_come_from(tmp_path):
    runs = [read_run(first(tmp_path / name)) for name in ("<script>alert(1)<", "b&amp;")]
    page = render(runs)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert drawn_in(page)[0]["data"][0]["name"] == "&lt;script&gt;alert(1)&lt;"  # plotly reads HTML


def test_runs_of_one_name_are_told_apart(tmp_path):
    assert names_of([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert names_of([tmp_path / "run"]) == ["run"]


@pytest.mark.parametrize("lines", [[], [row(0, 4)], [row(0, 4, "nan")], [attempt(), steps(1, loss=["inf"])]])
def test_a_run_of_which_little_is_known(tmp_path, lines):
    page = render([read_run(write(tmp_path / "run", lines, [note()] if not lines else []))])
    assert "<h2>Curves</h2>" in page
    assert ("There is no value to draw yet." in page) == (not lines)


def test_a_long_run_makes_a_page_that_opens_at_once(tmp_path):
    folder = long_run(tmp_path / "long", 100_000)
    start = time.perf_counter()
    page = render([read_run(folder)])
    assert time.perf_counter() - start < 5
    loss = drawn_in(page)[0]["data"]
    assert all(len(trace["x"]) <= 1700 for trace in loss)
    short = render([read_run(long_run(tmp_path / "short", 1000, block=100))])
    assert len(page) - len(short) < 200_000


def run_zae(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(tuple(map(str, arguments)))
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        first(tmp_path / "runs" / name)
    code, out, _ = run_zae(capsys, "report", "runs/a")
    assert (code, out) == (0, f"runs/a/report.html ({out.split('(')[1].split(')')[0]}); open it in a browser\n")
    assert run_zae(capsys, "report", "runs")[0] == 0
    assert "2 runs compared" in (tmp_path / "report.html").read_text()
    assert run_zae(capsys, "report", "runs/b", "runs/b", "-o", "new/page.html")[0] == 0
    assert "compared" not in text_of((tmp_path / "new" / "page.html").read_text())
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first(tmp_path / "runs" / "first")
    code, _, err = run_zae(capsys, "report", "runs/frist")
    assert (code, err) == (2, "zae: there is no 'runs/frist'; did you mean 'runs/first'?\n")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, err = run_zae(capsys, "report", "runs/first")
    assert (code, err) == (2, "zae: a report needs plotly; install it: pip install 'zae-engine[report]'\n")


@pytest.mark.usefixtures("starts_processes")
def test_the_commands_import_no_torch(tmp_path):
    folder = first(tmp_path / "first")
    code = (
        "import sys; from zae_engine.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    for command in ("report", "runs"):
        done = subprocess.run([sys.executable, "-c", code, command, folder], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n"), done.stdout


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome is installed, so no page can be opened")
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("count", [1, 3])
def test_a_browser_draws_it_at_every_width(tmp_path, browser, count):
    runs = [first(tmp_path / f"{LONG}{i}", lr=str(i)) for i in range(count)]
    page = write_report(runs, tmp_path / "page.html")
    for width in (1440, 390):
        browser.open(page, width)
        browser.run("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert browser.errors == []
        assert {url for url in browser.requests if not url.startswith("data:")} <= {page.as_uri()}
        drawn = browser.run(DRAWN)
        assert drawn == [True] * (4 if count == 1 else 5)
        assert browser.run("document.documentElement.scrollWidth") == width
        browser.requests.clear()


def test_a_run_is_hidden_in_all_figures_at_once(tmp_path, browser):
    browser.open(write_report([first(tmp_path / name) for name in "ab"], tmp_path / "page.html"))
    browser.run("document.querySelectorAll('[data-run]')[1].click()")
    shown = browser.run("[...document.querySelectorAll('.plot')].map(plot => [...new Set(plot.data.filter("
                        "trace => trace.visible !== false).map(trace => trace.meta))])")  # fmt: skip
    assert shown == [[0]] * 5
    browser.run("document.querySelector('[data-log]').click()")
    assert browser.run("document.querySelector('.plot').layout.yaxis.type") == "log"


def test_a_page_asks_for_nothing_even_if_a_name_would(tmp_path, browser):
    evil = first(tmp_path / "x", monitor='<img src="http://127.0.0.1:9/picture.png">')
    browser.open(write_report([evil], tmp_path / "page.html"))
    browser.errors.clear()
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/other.png\">')")
    assert any("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()


def crowded(folder, count, made):
    """A run of so many values, which `made` names."""
    names = [made(i) for i in range(count)]
    rows = [row(n, 2 * n + 2, 0.5, **dict.fromkeys(names, 1.0 + n)) for n in range(2)]
    values = {name.removeprefix("train_"): [1.0, 2.0, 3.0, 4.0] for name in names if name.startswith("train_")}
    return write(folder, [attempt(), steps(1, loss=[4.0, 3.0, 2.0, 1.0], **values), point(4), *rows])


@pytest.mark.parametrize(
    ("made", "left"),
    [
        (lambda i: f"train_k{i}", "2,942 more panels are left out"),
        (lambda i: f"test_k{i}", "2,942 more panels are left out"),
        (lambda i: f"test_set{i}_loss", "2,962 more curves are left out"),
        (lambda i: f"test_set_{i}_acc{i}", "2,942 more panels are left out"),
    ],
)
def test_of_many_values_a_page_is_made_within_seconds(tmp_path, made, left):
    folder = crowded(tmp_path / "run", 3000, made)
    began = time.process_time()
    page = write_report([folder]).read_text(encoding="utf-8")
    draw_curves(folder)
    assert time.process_time() - began < 5  # of 10,000, it was more than a minute; a picture of 24 panels takes some
    assert left in page
    assert len(page) < 7e6


def test_of_many_values_of_several_runs_the_watched_one_is_shown(tmp_path):
    folders = [crowded(tmp_path / name, 2000, lambda i: f"train_k{i}") for name in ("a", "b")]
    for folder in folders:
        (folder / "run.json").write_text(json.dumps({"attempts": [note(monitor="k1999 (max)")]}), encoding="utf-8")
    page = write_report(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1,943 more panels are left out" in page
    assert page.count("<figure") == 60
    assert "train k1999" in page


def test_a_checkpoint_of_many_metrics_is_one_line(tmp_path):
    write(tmp_path / "run", [attempt(), point(2), row(0, 2, 0.5)])
    make(tmp_path / "run" / "checkpoints", 1, metrics={f"k{i}": 1.0 for i in range(1000)})
    assert "and 980 more" in write_report([tmp_path / "run"]).read_text(encoding="utf-8")
