"""Run folders written by hand: what a run writes, without a training."""

import json
import math

STARTED = 1764000000.0
BATCH = 32


def attempt(number=1, after=0, step=0, time=STARTED, origin=None):
    return {"kind": "attempt", "attempt": number, "after": after, "step": step, "from": origin, "time": time}


def steps(first, epoch=1, **values):
    return {"kind": "steps", "epoch": epoch, "first": first, "values": values}


def row(number, step, test_loss=None, **values):
    """At the end of epoch `number` + 1."""
    test = {} if test_loss is None else {"test_loss": test_loss}
    head = {"kind": "row", "number": number, "epoch": number + 1, "step": step, "lr": 0.001}
    return {**head, "train_loss": 1 / step, **test, **values, "seconds": 1.0}


def point(step, epoch=1, time=STARTED, samples=BATCH, **seconds):
    """Of two seconds, unless `seconds` says otherwise."""
    seconds = {"all": 2.0, "data": 0.0, "evaluation": 0.0, "saving": 0.0, "logging": 0.0} | seconds
    return {"kind": "point", "step": step, "epoch": epoch, "lr": 0.001, "time": time, "train": {"loss": 1 / step},
            "samples": samples, "seconds": seconds}  # fmt: skip


def checkpoint(step, serial=1, time=STARTED):
    return {"kind": "checkpoint", "step": step, "name": f"{serial:06d}-step-{step}", "blocked": 0.02, "time": time}


def end(status="done", step=100, time=STARTED, **more):
    return {"kind": "end", "status": status, "reason": "the end", "step": step, "time": time, **more}


def note(monitor="loss (min)", settings=None, **more):
    """An attempt of ``run.json``."""
    return {"attempt": 1, "started": "2026-11-24T14:59:12+00:00", "host": "tower", "pid": 10389,
            "command": ["python", "train.py"], "trainer": "MyTrainer+StateManagerAddon", "seed": 0, "processes": 1,
            "launch": {"distributed_type": "NO", "device": "cpu", "mixed_precision": "no"},
            "settings": {"gradient_clip": 0.0, "the optimizer": {"class": "AdamW", "lr": "0.001"}} | (settings or {}),
            "circumstances": {"n_epoch": "3", "monitor": monitor, "torch": "2.13.0", "git": None}, **more}  # fmt: skip


def write(folder, lines=(), notes=(), tail=b""):
    """Make a run folder; `tail` is what a crash has left of a line."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(line).encode() + b"\n" for line in lines]
    (folder / "history.jsonl").write_bytes(b"".join(texts) + tail)
    if notes:
        (folder / "run.json").write_text(json.dumps({"format": 1, "attempts": list(notes)}))
    return folder


def long_run(folder, count, epochs=10, seconds=100.0, block=1000):
    """A run of many steps, whole blocks of them a line."""
    per_epoch, lines = count // epochs, [attempt()]
    for number in range(epochs):
        for first in range(number * per_epoch + 1, (number + 1) * per_epoch + 1, block):
            places = range(first, min(first + block, (number + 1) * per_epoch + 1))
            losses = [2 / (1 + 20 * i / count) + 0.1 * math.sin(i * 12.9898) for i in places]
            norms = [abs(math.sin(i * 78.233)) for i in places]
            lines.append(steps(first, number + 1, loss=losses, grad_norm=norms))
            share = seconds * len(places) / count
            time = STARTED + seconds * places[-1] / count
            lines.append(point(places[-1], number + 1, time, BATCH * len(places), all=share, data=share / 4))
        last = (number + 1) * per_epoch
        lines += [row(number, last, 2 / (1 + number), train_acc=number / epochs), checkpoint(last, number + 1, time)]
    return write(folder, [*lines, end(step=count, time=STARTED + seconds)], [note()])
