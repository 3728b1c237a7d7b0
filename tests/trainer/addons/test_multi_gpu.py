"""A list of devices: the script starts itself again, faithfully, and not under a launcher; a session starts workers."""

import json
import signal
import sys

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.helpers import PlainTrainer, make
from tests.launch.processes import TORCHRUN, clean, finish, rows, run, start
from zae_engine.launch.environment import LaunchError
from zae_engine.trainer.addons import MultiGPUAddon

Multi = PlainTrainer.add_on(MultiGPUAddon)

SCRIPT = """
import json, os, sys, torch
from tests.helpers import PlainTrainer, make
from zae_engine.trainer.addons import MultiGPUAddon

print("before", flush=True)
os.chdir("/")
trainer = make(PlainTrainer.add_on(MultiGPUAddon), device=["cpu", "cpu"])
total = trainer.accelerator.reduce(torch.tensor(1.0), "sum").item()
seen = {"rank": trainer.accelerator.process_index, "total": total, "arguments": sys.argv[1:]}
seen |= {"warnings": sys.warnoptions, "name": __name__, "config": trainer.launch_config()["num_processes"]}
sys.stdout.write(json.dumps(seen) + "\\n")
sys.stdout.flush()
trainer.accelerator.wait_for_everyone()
sys.exit(5 * trainer.accelerator.process_index)
"""


def write(folder, source=SCRIPT):
    folder.mkdir()
    script = folder / "train it.py"
    script.write_text(source)
    return script


@pytest.mark.usefixtures("starts_processes")
def test_a_script_is_started_again_as_it_was(tmp_path):
    write(tmp_path / "a b")
    command = [sys.executable, "-W", "error::UserWarning", "a b/train it.py", "x y", "--n=2"]
    code, out, err = run(*command, cwd=tmp_path)
    seen = rows(out)
    assert [(row["rank"], row["total"]) for row in seen] == [(0, 2.0), (1, 2.0)], err
    for row in seen:
        assert (row["arguments"], row["warnings"]) == (["x y", "--n=2"], ["error::UserWarning"])
        assert (row["name"], row["config"]) == ("__main__", 2)
    assert out.count("before") == 3
    assert (code, err) == (5, "zae-engine: process 1 ended with exit code 5, and the others with it\n")


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.slow
def test_a_module_is_started_again_as_a_module(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(SCRIPT.replace('os.chdir("/")', "from . import __name__ as parent"))
    _, out, err = run(sys.executable, "-m", "pkg.train", "x", cwd=tmp_path)
    assert [(row["rank"], row["total"], row["arguments"]) for row in rows(out)] == [(0, 2.0, ["x"]), (1, 2.0, ["x"])], (
        err
    )


@pytest.mark.usefixtures("starts_processes")
def test_what_comes_from_standard_input_is_refused(tmp_path):
    with (tmp_path / "script").open("w+") as source:
        source.write(SCRIPT)
        source.seek(0)
        ((code, _, err),) = finish(start([sys.executable, "-"], cwd=tmp_path, stdin=source))
    assert code == 1
    assert "LaunchError: several devices need a script" in err


UNDER = """
import json, sys, torch
from tests.helpers import PlainTrainer, make
from zae_engine.launch.environment import LaunchError
from zae_engine.trainer.addons import MultiGPUAddon

Multi = PlainTrainer.add_on(MultiGPUAddon)
try:
    make(Multi, device=["cpu"] * 3)
except LaunchError as error:
    refused = str(error)
trainer = make(Multi, device=["cpu"] * 2)
total = trainer.accelerator.reduce(torch.tensor(1.0), "sum").item()
sys.stdout.write(json.dumps({"rank": trainer.accelerator.process_index, "total": total, "refused": refused}) + "\\n")
"""


def test_under_a_launcher_nothing_is_started_and_the_numbers_have_to_agree(nursery, tmp_path):
    done = nursery.run(*TORCHRUN, "--nproc-per-node", 2, write(tmp_path / "x", UNDER), env=clean())
    assert done.returncode == 0, done.stderr
    assert [(row["rank"], row["total"]) for row in rows(done.stdout)] == [(0, 2.0), (1, 2.0)]
    for row in rows(done.stdout):
        assert "names 3, but a launcher started 2 processes" in row["refused"]


def test_one_process_of_accelerates_launcher_starts_no_others(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(LaunchError, match="names 2, but a launcher started 1 processes"):
        make(Multi, device=["cpu", "cpu"])


def test_within_a_test_nothing_can_be_started():
    with pytest.raises(LaunchError, match="start the main script once more"):
        make(Multi, device=["cpu", "cpu"])


@pytest.mark.parametrize("device", ["cpu", ["cpu"], ("cpu",), None], ids=str)
def test_one_device_starts_nothing(device):
    trainer = make(Multi, device=device)
    assert trainer.accelerator.num_processes == 1


@pytest.mark.parametrize(("device", "message"), [([], "names no device"), (["cpu", "cuda:0"], "mixes cpu and cuda")])
def test_lists_are_checked_first(device, message):
    with pytest.raises(ValueError, match=message):
        make(Multi, device=device)


def test_the_configuration_can_be_written_for_accelerate_launch(tmp_path):
    file = tmp_path / "launch.yaml"
    config = make(Multi, device="cpu", mixed_precision="bf16").launch_config(file)
    assert yaml.safe_load(file.read_text()) == config
    read = load_config_from_file(str(file))
    assert (read.distributed_type, read.num_processes, read.mixed_precision) == ("NO", 1, "bf16")
    assert read.use_cpu


# ---------------------------------------------------------------------- in a session

SESSION = """
import json, threading, torch
from tests.helpers import *
from zae_engine.trainer.addons import EarlyStoppingAddon, MultiGPUAddon, PrecisionMixerAddon

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp(dropout=0.0)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
    def forward(self, x):
        self.seen += 1
        return self.layers(x)

class Mine(MLPTrainer):
    fails = False
    def train_step(self, batch):
        if self.fails and self.accelerator.process_index == 1:
            raise FloatingPointError("broken here")
        return super().train_step(batch)

def build(device):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
    kind = Mine.add_on(EarlyStoppingAddon, MultiGPUAddon)
    return make(kind, model=model, optimizer=optimizer, scheduler=scheduler, device=device)

def shuffled():
    return loader(shuffle=True, generator=torch.Generator().manual_seed(5))

def numbers(trainer):
    yield from trainer.model.state_dict().values()
    yield trainer.optimizer.state_dict()["state"][0]["exp_avg"]
    yield torch.cat(trainer.log_train["output"])
    yield torch.tensor(trainer.get_loss_history())
    yield torch.tensor([row["train_acc"] for row in trainer.history])
    yield torch.tensor([row.get("test_loss", 0.0) for row in trainer.history])

def compare():
    row = {"apart": max((x - y).abs().max().item() for x, y in zip(numbers(a), numbers(b), strict=True))}
    row |= {"rows": [len(a.history), len(b.history)], "same": a.history is history, "seen": a.model.seen.item()}
    row |= {"schedule": a.scheduler.state_dict() == b.scheduler.state_dict(), "batch": a.batch_size}
    row |= {"states": [list(a.state_dict()), a.progress_checker.get_step(), b.progress_checker.get_step()]}
    print(json.dumps(row))

class Odd(PlainTrainer):
    def train_step(self, batch):
        return {**super().train_step(batch), "lock": threading.Lock()}

def precision(*order):
    trainer = make(Odd.add_on(*order), device=["cpu", "cpu"], precision="bf16")
    trainer.run(1, loader())
    return [trainer.accelerator.mixed_precision, trainer.launch_config()["mixed_precision"], sorted(trainer.log_train)]

found = [precision(MultiGPUAddon, PrecisionMixerAddon), precision(PrecisionMixerAddon, MultiGPUAddon)]
print(json.dumps({"precisions": found}))

a, b, many, once = build(["cpu", "cpu"]), build("cpu"), shuffled(), shuffled()
history = a.run(2, many, loader(20))
_ = b.run(2, once, loader(20))
compare()
_ = a.run(1, many, loader(20)), b.run(1, once, loader(20))
compare()
a.apply_weights(); b.apply_weights()
_ = a.inference(loader(20))
compare()

Mine.fails = True
a.run(1, many)

Mine.fails = False
_ = a.run("3st", many), b.run("3st", once)
compare()
print(json.dumps({"reason": a.stop_reason}))
"""


def session(tmp_path, source, **options):
    """An interactive Python that reads `source` line by line."""
    file = tmp_path / "typed.txt"
    file.write_text(source)
    with file.open() as lines:
        return start([sys.executable, "-i", "-u"], env=clean(), stdin=lines, **options)


@pytest.mark.usefixtures("starts_processes")
def test_in_a_session_workers_train_and_everything_comes_back(tmp_path):
    ((_, out, err),) = finish(session(tmp_path, SESSION))
    seen = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(seen) == 6, err
    assert seen.pop(0)["precisions"] == [["bf16", "bf16", ["loss", "num_items"]]] * 2
    for row, count, step, ran in zip(seen, (2, 3, 3, 4), (13, 19, 19, 22), (18, 27, 30, 33), strict=False):
        assert row["apart"] <= 1e-6
        assert (row["rows"], row["batch"], row["schedule"], row["same"]) == ([count] * 2, 8, True, True)
        assert row["states"] == [["Trainer", "EarlyStoppingAddon"], step, step]
        assert row["seen"] == ran
    assert seen[4] == {"reason": "3 steps done"}
    assert err.count("Error") == 2 + err.count("WorkerError"), err
    assert err.index("WorkerError: process 1 of 2 failed") < err.rindex("FloatingPointError: broken here")


KEPT = """
import json
from tests.helpers import *
from zae_engine.trainer.addons import MultiGPUAddon, StateManagerAddon

def build(*order):
    return make(PlainTrainer.add_on(*order), device=["cpu", "cpu"], save_path="kept", seed=0)

build(MultiGPUAddon, StateManagerAddon).run(1, loader())

trainer = build(StateManagerAddon, MultiGPUAddon)
def steps(*args, **options):
    _ = trainer.run(*args, **options)
    print(json.dumps(trainer.progress_checker.get_step() - 1))

steps(1, loader(), resume="auto")
steps(1, loader(), resume="auto")
steps(1, loader())
trainer = build(StateManagerAddon, MultiGPUAddon)
steps(1, loader(), resume="auto")
"""


@pytest.mark.usefixtures("starts_processes")
def test_a_session_knows_what_its_workers_have_saved(tmp_path):
    ((_, out, err),) = finish(session(tmp_path, KEPT, cwd=tmp_path))
    assert [json.loads(line) for line in out.split()] == [6, 12, 18, 18], err
    assert err.count("add_on(StateManagerAddon, MultiGPUAddon)") == 1
    assert len(list((tmp_path / "kept" / "checkpoints").iterdir())) == 2


THAWING = """
import json
from tests.helpers import *
from zae_engine.trainer.addons import MultiGPUAddon

class Thawing(PlainTrainer):
    def run_epoch(self, batches, **kwargs):
        if self.progress_checker.get_epoch() == 2:
            self.model[0].requires_grad_(True)
            self.optimizer.add_param_group({"params": list(self.model[0].parameters()), "lr": 0.02})
        super().run_epoch(batches, **kwargs)

def build(device):
    model = mlp().double()
    model[0].requires_grad_(False)
    return make(Thawing.add_on(MultiGPUAddon), model=model, optimizer=sgd(model[3]), device=device)

a, b = build(["cpu", "cpu"]), build("cpu")
batches = [(x.double(), y) for x, y in loader()]
_ = a.run(2, batches), b.run(2, batches)
_ = a.run(1, batches), b.run(1, batches)
found = {"apart": largest_difference(weights(a.model), weights(b.model)), "trained": a.model[0].weight.requires_grad}
print(json.dumps({**found, "groups": [[len(g["params"]), g["lr"]] for g in a.optimizer.param_groups]}))
"""


@pytest.mark.usefixtures("starts_processes")
def test_what_the_workers_have_thawed_is_thawed_in_the_session(tmp_path):
    ((_, out, err),) = finish(session(tmp_path, THAWING))
    found = json.loads(out) if out.startswith("{") else err
    assert found.pop("apart") <= 1e-14
    assert found == {"trained": True, "groups": [[2, 0.1], [2, 0.02]]}


SLOW = """
from tests.helpers import *
from zae_engine.trainer.addons import MultiGPUAddon
import time

class Slow(PlainTrainer):
    wait = 0.2
    def train_step(self, batch):
        print("step", flush=True)
        time.sleep(self.wait)
        return super().train_step(batch)

trainer = make(Slow.add_on(MultiGPUAddon), device=["cpu", "cpu"])
trainer.run(100, loader())
Slow.wait = 0.0
print("rows", len(trainer.run(1, loader())), flush=True)
"""


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_session_s_run(tmp_path, number):
    process = session(tmp_path, SLOW, start_new_session=True)
    assert "step" in process.stdout.readline()
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    ((code, out, err),) = finish(process, timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(workers), alive) == (2, [])
    assert code == (0 if number == signal.SIGINT else -number)
    assert ("KeyboardInterrupt" in err, "rows 1" in out) == (code == 0, code == 0)
