"""Damages files of a real run folder at random, from a seed, and reads them with everything that reads them.

``python -m tests.fuzz SEED COUNT`` does it in a process of its own, with 200 MB of memory more than it begins with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

from tests.helpers import PlainTrainer, loader, make
from zae_engine.checkpoint import CheckpointError, WeightsError, load_weights, read_weights
from zae_engine.checkpoint.compare import compare
from zae_engine.checkpoint.documents import read_document, read_tensors
from zae_engine.checkpoint.folder import choose, committed, examine, foreign_files, ranked, seal
from zae_engine.checkpoint.lock import RunLock
from zae_engine.checkpoint.retention import retain
from zae_engine.files import NotPlainError
from zae_engine.launch.check import check_config
from zae_engine.launch.findings import ConfigError
from zae_engine.launch.machine import Machine
from zae_engine.launch.resolve import resolve_config
from zae_engine.logs.cursor import cursors_in
from zae_engine.logs.curves import steps_of
from zae_engine.logs.export import SyncError, export, sync
from zae_engine.logs.history_file import HistoryFile, read_history
from zae_engine.logs.merging import records_of
from zae_engine.logs.outcome import is_held
from zae_engine.logs.reading import Run, RunFolderError, read_run
from zae_engine.logs.report import render
from zae_engine.logs.report_figures import figures_of
from zae_engine.logs.run_tables import environment_of, settings_of, table_of
from zae_engine.logs.runs import list_runs
from zae_engine.logs.runs import table_of as table_of_runs
from zae_engine.logs.summary import effort_lines, summarize
from zae_engine.trainer.addons import CSVLoggerAddon, StateManagerAddon
from zae_engine.trainer.journal.run_json import read_run_json

OWN = (CheckpointError, ConfigError, NotPlainError, RunFolderError, SyncError, WeightsError, FileNotFoundError)
WAIT = 20  # seconds that one damaged file may take
ROOM = 200 << 20
CONFIGS = Path(__file__).parents[1] / "accelerate_configs"
MACHINE = Machine("cuda", tuple("01234567"), 64, ("no", "fp16", "bf16", "fp8"))
NASTY = (
    *(None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**400, 1 << 63, "", "x", "nan", "-inf", "1e999"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, "\ud800", "../../etc/passwd", "a\nb", "\x1b[2J", "/dev/zero"),
    *("$", [1, "a"], {"$": "tensor", "v": 3}, {"$": "dict", "v": [[[], 1]]}, {"$": "int", "v": "0x" + "f" * 9999}),
)
TOKENS = (
    *(b"[" * 5000, b"{" * 300, b'{"a":' * 200, b"1e999", b"NaN", b"-Infinity", b'"\\ud800"', b"\xed\xa0\x80"),
    *(b"\x00" * 64, b"\n", b"null", b"\xff\xfe", b"9" * 5000, b"- ", b": ", b"&a [*a]", b"<<: *a", b"!!timestamp x"),
    *(b"\t", b'"', b"}", b"]", b"\\"),
)


class Fuzz:
    """A folder with a run in it, and what stands outside of it.

    Parameters
    ----------
    root : Path
        An empty folder.
    seed : int
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.random, self.root, self.run = random.Random(seed), root, root / "runs" / "run"
        self.outside, self.tried = root / "outside", Counter[str]()
        self.outside.mkdir()
        (self.outside / "victim").write_text("precious")
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            self._train()
        self.configs = sorted(CONFIGS.glob("*.yaml"))
        shutil.copytree(self.run, root / "kept")
        self.checkpoint = sorted((self.run / "checkpoints").iterdir())[-1]
        self.files = [path for path in sorted(self.run.rglob("*")) if path.is_file() and path.suffix != ".png"]

    def _train(self) -> None:
        kind = PlainTrainer.add_on(StateManagerAddon, CSVLoggerAddon)
        for epochs in (1, 2):
            trainer = make(kind, save_path=self.run, log_every="2st")
            trainer.run(epochs, loader(), {"a": loader(), "b": loader()}, resume="auto")
            trainer.close_loggers()
        (self.run / "owner.json").write_text(json.dumps({"pid": 1, "host": "x", "since": "now", "job": None}))

    def one(self) -> str | None:
        """Damage a file, read it, and put it back; return what went wrong, with its traceback."""
        if self.random.random() < 0.12:
            return self._config()
        path = self.random.choice(self.files)
        if self.random.random() < 0.25:  # where most is read
            path = self.random.choice(
                [self.run / "history.jsonl", self.run / "run.json", self.checkpoint / "state.json"]
            )
        kind = self._damage(path)
        try:
            return self._judged(path, kind, self._readers(path))
        finally:
            shutil.rmtree(self.run)
            shutil.copytree(self.root / "kept", self.run)

    def _config(self) -> str | None:
        path = self.root / "config.yaml"
        path.write_bytes(self._bytes(self.random.choice(self.configs).read_bytes()))
        return self._judged(
            path, "bytes", [lambda: check_config(path, MACHINE), lambda: resolve_config(path, MACHINE, {})]
        )

    # ------------------------------------------------------------------ damage

    def _damage(self, path: Path) -> str:
        kinds = ["bytes"] * 6 + ["json"] * 10 * (path.suffix in (".json", ".jsonl")) + ["head"] * 5 * (
            path.suffix == ".safetensors") + ["odd"]  # fmt: skip
        kind = self.random.choice(kinds)
        if kind == "odd":
            return self._odd(path)
        content = path.read_bytes()
        path.write_bytes({"bytes": self._bytes, "json": self._values, "head": self._head}[kind](content))
        if self.checkpoint in path.parents and path.name != "manifest.json" and self.random.random() < 0.7:
            self._reseal(path)
        if path.name == "manifest.json" and self.random.random() < 0.7:
            with contextlib.suppress(Exception):
                manifest = json.loads(path.read_bytes())
                path.write_text(json.dumps(manifest | {"sha256": seal(manifest)}))
        return kind

    def _bytes(self, content: bytes) -> bytes:
        draw, data = self.random, bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 2, 5, 50))):
            at = draw.randrange(len(data) + 1)
            how = draw.randrange(6)
            if how == 0 and data:
                data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)
            elif how == 1:
                del data[at:]
            elif how == 2:
                del data[at : at + draw.randrange(1, 200)]
            elif how == 3:
                data[at:at] = data[at : at + draw.randrange(1, 200)]
            elif how == 4:
                data[at:at] = draw.choice(TOKENS)
            else:
                data[at : at + 4] = draw.randbytes(4)
        return bytes(data)

    def _values(self, content: bytes) -> bytes:
        """Put values where others belong, in one line or document."""
        lines = content.splitlines() if content.count(b"\n{") > 1 else [content]
        place = self.random.randrange(len(lines))
        value = self._changed(json.loads(lines[place]))
        for _ in range(self.random.choice((0, 0, 1, 3))):
            value = self._changed(value)
        lines[place] = json.dumps(value).encode()
        return b"\n".join(lines) + b"\n"

    def _changed(self, value: object) -> object:
        nasty = self.random.choice(NASTY)
        if isinstance(value, dict) and value and self.random.random() < 0.9:
            key = self.random.choice(sorted(value))
            how = self.random.random()
            if how < 0.1:
                return {k: v for k, v in value.items() if k != key}
            if how < 0.2:
                return {str(nasty)[:50] if k == key and type(nasty) is not int else k: v for k, v in value.items()}
            return value | {key: self._changed(value[key])}
        if isinstance(value, list) and value and self.random.random() < 0.9:
            at = self.random.randrange(len(value))
            return [*value[:at], self._changed(value[at]), *value[at + 1 :]]
        return nasty

    def _head(self, content: bytes) -> bytes:
        """Another header of a safetensors file."""
        length = int.from_bytes(content[:8], "little")
        if self.random.random() < 0.2:
            return (
                self.random.choice((0, 1, length - 1, length + 1, 1 << 40, (1 << 64) - 1)).to_bytes(8, "little")
                + content[8:]
            )
        head = json.dumps(self._changed(json.loads(content[8 : 8 + length]))).encode()
        return len(head).to_bytes(8, "little") + head + content[8 + length :]

    def _reseal(self, path: Path) -> None:
        """Let the manifest list the file as it is now: a stranger can do that, too."""
        name, content = path.relative_to(self.checkpoint).as_posix(), path.read_bytes()
        manifest = json.loads((self.checkpoint / "manifest.json").read_bytes())
        if name in manifest["files"]:
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (self.checkpoint / "manifest.json").write_text(json.dumps(manifest | {"sha256": seal(manifest)}))

    def _odd(self, path: Path) -> str:
        kind = self.random.choice(("gone", "empty", "folder", "pipe", "link", "ring", "device", "vast"))
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind in ("link", "ring", "device"):
            path.symlink_to({"link": self.outside / "victim", "ring": path, "device": "/dev/zero"}[kind])
        elif kind != "gone":
            path.touch()
            os.truncate(path, 0 if kind == "empty" else 1 << 33)  # of nothing, which takes no room
        return kind

    # ------------------------------------------------------------------ reading

    def _readers(self, path: Path) -> list:
        """Whatever reads the file, and others beside it."""
        if self.checkpoint in path.parents:
            return [self._read_checkpoint, lambda: self._read_file(path), lambda: self._load(path)]
        if path.name == "model.safetensors":
            return [lambda: self._read_file(path)]
        if path.name in ("lock", "owner.json"):
            return [lambda: is_held(self.run), self._lock, lambda: list_runs(self.root / "runs")]
        readers = [self._read_run, lambda: table_of_runs(list_runs(self.root / "runs")), lambda: cursors_in(self.run)]
        if path.name == "history.jsonl":
            readers += [lambda: read_history(self.run), lambda: records_of(self.run), lambda: HistoryFile(path).resumes]
            readers += [lambda: records_of(self.run, True), lambda: HistoryFile(path).append([{"kind": "end"}])]
        if path.name in ("run.json", "summary.json"):
            readers += [lambda: read_run_json(self.run)]
        return [*readers, lambda: export(self.run, "csv", {}), lambda: sync(self.run)]

    def _read_run(self) -> None:
        from zae_engine.logs.curves_picture import panels_of  # it imports matplotlib

        run = read_run(self.run)
        effort_lines(summarize(run))
        table_of([settings_of(run), environment_of(run)])
        figures_of([run], ["run"])
        figures_of([run, Run(self.run)], ["one", "two"])
        panels_of(run.rows, steps_of(run))
        if self.random.random() < 0.05:
            render([run])

    def _lock(self) -> None:
        with RunLock(self.run, patience=0.0):
            pass

    def _read_checkpoint(self) -> None:
        folder = self.run / "checkpoints"
        for found in committed(folder):
            examine(found.path)
            foreign_files(found.path)
            _ = (found.epoch, found.processes, found.metrics, found.size, found.created, found.monitored)
        ranked(committed(folder))
        choose(folder)
        choose(folder, "best")
        retain(folder, 1, 1)

    def _read_file(self, path: Path) -> None:
        if path.suffix == ".json":
            read_document(path.parent, path.stem)
        elif path.suffix == ".safetensors":
            read_tensors(path)
            load_weights(make().model, read_weights(path))

    def _load(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = make(PlainTrainer.add_on(StateManagerAddon, CSVLoggerAddon), save_path=self.root / "other")
            trainer.load_state(self.checkpoint)
        kept = self.root / "kept" / "checkpoints" / self.checkpoint.name
        list(compare(self.checkpoint, kept))

    def _judged(self, path: Path, kind: str, readers: list) -> str | None:
        self.tried[f"{path.name} {kind}"] += 1
        for reader in readers:
            try:
                signal.alarm(WAIT)
                reader()
            except OWN as error:
                if not str(error).strip():
                    return f"{path.name}, {kind}: {type(error).__name__} without a word"
            except BaseException:
                kept = path.read_bytes()[:2000] if path.is_file() and kind != "vast" and kind != "device" else b""
                return f"{path.name}, {kind}:\n{traceback.format_exc()}\n{kept!r}"
            finally:
                signal.alarm(0)
        if os.listdir(self.outside) != ["victim"] or (self.outside / "victim").read_text() != "precious":
            return f"{path.name}, {kind}: written outside"
        return None


def late(*_: object) -> None:
    raise TimeoutError("it waits")


def main(seed: int, count: int) -> None:
    signal.signal(signal.SIGALRM, late)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        fuzz = Fuzz(Path(root), seed)
        render([read_run(fuzz.run)])  # what is loaded for it does not count
        fuzz._load(fuzz.checkpoint / "state.json")
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
        wrong = [said for _ in range(count) if (said := fuzz.one())]
    print("\n".join(wrong))
    print(f"{len(wrong)} of {count} wrong, seed {seed}; {len(fuzz.tried)} kinds")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
