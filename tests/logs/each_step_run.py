"""A training of 300 steps that take ten milliseconds each, at the default ``log_every``, with four loggers.

``python -m tests.logs.each_step_run FOLDER`` prints what each client's own files have of it, as JSON.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

from tests.helpers import PlainTrainer, loader, make
from zae_engine.trainer import addons

ADD_ONS = (
    addons.CSVLoggerAddon,
    addons.TensorBoardLoggerAddon,
    addons.WandBLoggerAddon,
    addons.MLflowLoggerAddon,
)


class Unhurried(PlainTrainer):
    def train_step(self, batch):
        time.sleep(0.01)
        return super().train_step(batch)

    test_step = train_step


def in_csv(folder):
    with open(folder / "metrics.csv") as file:
        return [(int(line["step"]), float(line["train/loss"])) for line in csv.DictReader(file) if line["train/loss"]]


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars("train/loss")]


def in_wandb(folder):
    from zae_engine.logs.loggers.wandb_file import read_steps

    rows = [values for path in (folder / "wandb").rglob("*.wandb") for _, values in read_steps(path)]
    return [(int(values["step"]), values["train/loss"]) for values in rows if "train/loss" in values]


def in_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = json.loads((folder / "loggers" / "mlflow.json").read_text())["id"]
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, "train/loss")]


def main(folder):
    trainer = make(Unhurried.add_on(*ADD_ONS), save_path=folder)
    trainer.run(1, loader(8 * 300))
    trainer.close_loggers()
    kept = {"csv": in_csv, "tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}
    found = {name: read(folder) for name, read in kept.items()}
    print(json.dumps({"losses": list(map(float, trainer.get_loss_history())), **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
