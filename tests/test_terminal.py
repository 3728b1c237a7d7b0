"""Names and values of a stranger's folder reach no terminal, and no page, as escape sequences or lines of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.checkpoint.making import begin, summary
from tests.checkpoint.making import make as save
from tests.helpers import PlainTrainer, loader, make
from tests.logs.making import attempt, note, point, row, write
from zae_engine.checkpoint.documents import write_document, write_tensors
from zae_engine.checkpoint.errors import CheckpointError
from zae_engine.cli import main
from zae_engine.logs.reading import RunFolderError
from zae_engine.terminal import in_line, printable
from zae_engine.trainer.addons import StateManagerAddon
from zae_engine.trainer.console.bar import LineBar
from zae_engine.trainer.warn import warn

EVIL = "x\x1b]0;title\x07\x9b2J\u202e\nfake  done"
ESCAPED = r"x\x1b]0;title\x07\x9b2J\u202e\nfake  done"


@pytest.fixture
def zae(capfd):
    def call(*arguments):
        with pytest.raises(SystemExit):
            main([str(word) for word in arguments])
        return capfd.readouterr()

    return call


def has_controls(text):
    return any(not c.isprintable() and c != "\n" for c in text)


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """Runs whose every name is a stranger's: of the folder, of values, tensors, files, settings."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / EVIL.replace("/", "")
    write(folder, [attempt(origin=EVIL), point(2), row(0, 2, 1.5, **{f"test_{EVIL}": 1.0})],
          [note(settings={EVIL: EVIL}, host=EVIL)])  # fmt: skip
    for serial in (1, 2):
        commit = begin(folder / "checkpoints", serial)

        def content(partial, serial=serial):
            write_tensors(partial / "model.safetensors", {EVIL: torch.full((2,), float(serial))})
            return ["model.safetensors", *write_document(partial, "state", {EVIL: EVIL * serial, "step": 1})]

        commit.write(content)
        commit.finish({**summary(serial), "metrics": {EVIL: 1.0}, EVIL: EVIL})
    (folder / "loggers").mkdir()
    told = {"logger": "csv", "id": f"../{EVIL}", "step": 0, "settings": {EVIL: EVIL}, "status": "open"}
    (folder / "loggers/csv.json").write_text(json.dumps(told))
    (folder / "loggers/tensorboard.json").write_text(json.dumps({**told, "settings": {}}))
    return folder


def test_text_is_shown_as_repr_does():
    assert (in_line(EVIL), printable(EVIL)) == (ESCAPED, ESCAPED.replace(r"\n", "\n"))
    for plain in ("µ-Verlust · 손실 – 1.5 €", "", "a b"):
        assert (in_line(plain), printable(plain)) == (plain, plain)
    assert in_line("caf\udce9") == r"caf\udce9"


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (["runs", "runs"], 2),
        (["runs", "runs", "--sort", f"test_{EVIL}"], 2),
        (["runs", "runs", "--sort", "nothing"], 1),
        (["checkpoint", "ls", "RUN"], 3),
        (["checkpoint", "verify", "RUN"], 9),
        (["checkpoint", "diff", "RUN/checkpoints/000001-step-10", "RUN/checkpoints/000002-step-20"], None),
        (["checkpoint", "show", "RUN"], None),
        (["checkpoint", "show", "RUN/nothing"], 1),
        (["logs", "sync", "RUN"], 2),
        (["logs", "export", "RUN", "--to", "csv"], 1),
        (["logs", "export", "RUN", "--to", EVIL], 1),
        (["report", "RUN"], 1),
        ([EVIL], 1),
        (["runs", f"--{EVIL}"], 1),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_no_command_prints_a_control_character(zae, strange, command, lines):
    out, err = zae(*(word.replace("RUN", str(strange)) for word in command))
    assert not has_controls(out + err)
    assert lines is None or (out + err).count("\n") == lines, out + err
    assert not [line for line in (out + err).splitlines() if line.startswith("fake")]
    assert r"\x1b]0;title" in out + err or "nothing" in command or "verify" in command


def test_a_configuration_s_keys_are_escaped(zae, tmp_path):
    text = 'distributed_type: "NO"\nnum_processes: 1\n"\\e]0;x\\a": 1\n"a\\nb": 2\n'
    (tmp_path / "c.yaml").write_text(text)
    (tmp_path / "script.py").write_text("")
    for command in (["config", "check"], ["config", "resolve"], ["launch"]):
        out, err = zae(*command, tmp_path / "c.yaml", *([tmp_path / "script.py"] if command == ["launch"] else []))
        assert not has_controls(out + err)
        assert not [line for line in (out + err).splitlines() if line.startswith("b")]
        assert r"\x1b]0;x" in out + err


def test_a_report_has_no_control_character(zae, strange):
    pytest.importorskip("plotly")
    zae("report", strange, "-o", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    ours, _, rest = page.partition("<script>")  # plotly's own has some
    assert not has_controls(ours.replace("\t", ""))
    assert r"\x1b]0;title" in ours
    assert "\\u001b" not in rest.rpartition('id="drawn"')[2]


def test_errors_warnings_and_lines_of_a_training_are_escaped(capsys):
    with pytest.warns(UserWarning, match="differs") as told:
        warn(f"differs: {EVIL}")
    LineBar(sys.stderr).write(f"since the checkpoint: {EVIL}")
    words = [capsys.readouterr().err, str(told[0].message)]
    words += [str(kind(f"{EVIL} is no tensor")) for kind in (CheckpointError, RunFolderError)]
    assert not has_controls("".join(words))
    assert all(r"x\x1b]0;title" in word for word in words)


def test_what_a_resume_says_of_a_checkpoint_is_escaped(tmp_path):
    class Strange(TensorDataset):
        pass

    Strange.__name__ = EVIL
    data = Strange(*loader().dataset.tensors)
    kind = PlainTrainer.add_on(StateManagerAddon)
    make(kind, save_path=tmp_path).run(1, DataLoader(data, batch_size=8))
    with pytest.raises(CheckpointError) as told:
        make(kind, save_path=tmp_path).run(2, DataLoader(TensorDataset(*data.tensors), batch_size=8), resume="auto")
    first = ESCAPED.partition(r"\n")[0]  # the line that differs
    assert f"the dataset: {first} in the checkpoint, TensorDataset now" in str(told.value)
    assert not has_controls(str(told.value))


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")
@pytest.mark.parametrize(
    "words", ["runs {}", "runs {} --json", "checkpoint ls {}", "--help", "config check FILE", "config resolve FILE"]
)
def test_a_reader_that_goes_ends_a_command_without_a_word(tmp_path, words):
    for number in range(30):
        write(tmp_path / (f"run{number}" * 20), [attempt(), point(2), row(0, 2, 1.5)])
    file = Path(__file__).parents[1] / "accelerate_configs/cpu.yaml"
    run = tmp_path / ("run1" * 20)
    save(run / "checkpoints", 1)
    named = {"FILE": str(file), "{}": str(run if "checkpoint" in words else tmp_path)}
    command = [named.get(word, word) for word in words.split()]
    reading, writing = os.pipe()
    os.close(reading)  # at once, so that the first write meets nobody
    done = subprocess.run(
        [sys.executable, "-m", "zae_engine.cli", *command], stdout=writing, stderr=subprocess.PIPE, timeout=100
    )
    os.close(writing)
    assert (done.returncode in (1, 141), done.stderr) == (True, b"")  # 1: typer's own, of a help


@pytest.mark.usefixtures("starts_processes")
def test_an_output_without_a_dash_gets_its_escape(tmp_path):
    write(tmp_path / "run", [attempt()])
    done = subprocess.run(
        [sys.executable, "-m", "zae_engine.cli", "runs", tmp_path],
        capture_output=True, timeout=100, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (rb"\u2013" in done.stdout, done.stderr) == (True, b"")
