"""Kill a training three times in the middle of a step, run the same command again, and compare with one left alone.

python examples/resume.py           # about 20 seconds; all that it writes is in ./resume_runs, resume.png among it
python examples/resume.py FOLDER
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zae_engine import Trainer
from zae_engine.trainer import read_history
from zae_engine.trainer.addons import StateManagerAddon

SEED, EPOCHS, RATE = 0, 6, 5e-3
KILLS = (43, 93, 144)  # the steps in whose middle the process dies


class DigitsTrainer(Trainer):
    def train_step(self, batch):
        images, labels = batch
        logits = self.model(images + 0.2 * torch.randn_like(images))  # other noise at each step, as dropout has it
        if self.progress_checker.get_step() == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)  # nothing can catch this, and nothing is saved by it
        return {"loss": nn.functional.cross_entropy(logits, labels)}

    test_step = train_step


def train(folder):
    """The script of an ordinary user; the three lines that matter are marked."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    loader = DataLoader(data, 64, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs=EPOCHS, steps_per_epoch=len(loader))
    options = {"scheduler_step_on_batch": True, "seed": SEED, "log_bar": False, "save_every": "25st"}

    kind = DigitsTrainer.add_on(StateManagerAddon)  # 1
    trainer = kind(model, optimizer=optimizer, scheduler=schedule, save_path=folder, **options)  # 2: save_path
    trainer.run(n_epoch=EPOCHS, loader=loader, resume="auto")  # 3: resume


def start(folder, kill_at):
    """The very same command each time; only the accident is another one."""
    command = [sys.executable, __file__, "--train", str(folder)]
    code = subprocess.run(command, env={**os.environ, "KILL_AT": str(kill_at)}).returncode
    if code != (-signal.SIGKILL if kill_at else 0):
        sys.exit(f"the training in {folder} ended with code {code}")


def compare(folders):
    """The losses of both, and the largest difference of any loss, and of any tensor of the last checkpoints."""
    losses = [{x["step"]: x["loss"] for x in read_history(folder) if x["kind"] == "step"} for folder in folders]
    last = [max((folder / "checkpoints").iterdir()) for folder in folders]
    tensors = [load_file(path / "model.safetensors") | load_file(path / "state.safetensors") for path in last]
    of_losses = max(abs(losses[0][step] - losses[1][step]) for step in losses[0] | losses[1])  # the same steps in both
    return losses, of_losses, max(float((tensors[0][k].double() - tensors[1][k]).abs().max()) for k in tensors[0])


def draw(losses, again, said, path):
    from matplotlib.figure import Figure  # not above: the trainings that are started do not need it

    figure = Figure(figsize=(10.4, 6.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*losses[0].items(), strict=True), color="#56B4E9", linewidth=8)
    axis.plot(*zip(*losses[1].items(), strict=True), color="black", linewidth=1.5)
    for kill, step in zip(KILLS, again, strict=True):
        axis.axvspan(step, kill, color="#F8DCC8")
        axis.axvline(kill, color="#C04000")
        words = f" killed in step {kill},\n back to {step}:\n {kill - 1 - step} steps again"
        axis.text(kill, 2.35, words, color="#C04000", va="top", fontsize=13)
    axis.text(-5, 0.75, "thick line:\nleft alone", color="#2A86B8", fontsize=16)
    axis.text(-5, 0.45, "thin line:\nkilled 3 times", fontsize=16)
    axis.set_xlabel("optimizer step", fontsize=15)
    axis.tick_params(labelsize=14)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(said, fontsize=17)
    figure.savefig(path, dpi=150)


def main(runs):
    if runs.exists():
        sys.exit(f"{runs} is there already; remove it, or give another folder: python examples/resume.py FOLDER")
    alone, killed = runs / "alone", runs / "killed"
    start(alone, 0)
    for step in (*KILLS, 0):
        start(killed, step)
    lines = (killed / "history.jsonl").read_text().splitlines()
    again = [json.loads(line)["step"] for line in lines if '"attempt"' in line][1:]
    losses, of_losses, of_tensors = compare([alone, killed])
    said = f"loss of each step; largest difference: {of_losses:g}, of the final state: {of_tensors:g}"
    draw(losses, again, said, runs / "resume.png")
    print(f"killed in the steps {KILLS}, taken up after {tuple(again)}\n{said}\npicture: {runs / 'resume.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill a training three times, and compare it with one left alone.")
    parser.add_argument("folder", type=Path, nargs="?", default="resume_runs", help="a new one (default: %(default)s)")
    parser.add_argument("--train", action="store_true", help="only train, in that folder; go on where it was killed")
    arguments = parser.parse_args()
    train(arguments.folder) if arguments.train else main(arguments.folder)
