"""Train on handwritten digits, watched by TensorBoard and Weights & Biases, and say where to look.

pip install 'zae-engine[examples,tensorboard,wandb,report]'
python examples/watch.py           # some seconds on a CPU; all that it writes is in ./runs/watch
python examples/watch.py FOLDER

No account is needed: without an API key the W&B run is kept in the folder, and `wandb sync` uploads it later.
"""

import argparse
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from zae_engine import Trainer
from zae_engine.trainer.addons import StateManagerAddon, TensorBoardLoggerAddon, WandBLoggerAddon

SEED, EPOCHS, RATE = 0, 20, 3e-3


class DigitsTrainer(Trainer):
    def train_step(self, batch):
        images, labels = batch
        logits = self.model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "acc": (logits.argmax(1) == labels).float().mean()}

    test_step = train_step


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    train, held_out = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(SEED))
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(held_out, batch_size=256)


def make_trainer(folder: Path, steps_an_epoch: int) -> DigitsTrainer:
    torch.manual_seed(SEED)  # the weights are drawn before there is a trainer
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs=EPOCHS, steps_per_epoch=steps_an_epoch)

    watched = DigitsTrainer.add_on(StateManagerAddon, TensorBoardLoggerAddon, WandBLoggerAddon)  # 1: the loggers
    try:
        return watched(
            model,
            optimizer=optimizer,
            scheduler=schedule,
            scheduler_step_on_batch=True,
            gradient_clip=1.0,  # the norm before is a value, too
            seed=SEED,
            save_path=folder,
            log_every="20st",  # by default every step is a point, while that costs next to nothing
            web_logger={"wandb": {"project": "digits", "tags": ["example"]}},  # 2: their settings, where any are wanted
        )
    except ModuleNotFoundError as error:  # it says which client is missing, and how to install it
        sys.exit(f"{error}\nfor all of this example: pip install 'zae-engine[examples,tensorboard,wandb,report]'")


def main(folder: Path) -> None:
    train, held_out = loaders()
    trainer = make_trainer(folder, len(train))
    trainer.run(n_epoch=EPOCHS, loader=train, valid_loader=held_out, resume="auto")
    trainer.close_loggers()  # else the end of the program does it
    if trainer.is_main_process:
        print(f"curves            {folder / 'curves.png'}")
        print(f"summary           {folder / 'summary.json'}")
        print(f"TensorBoard       tensorboard --logdir {folder / 'tensorboard'}")
        print(f"W&B               {folder / 'wandb'}, or online if you are logged in")
        print(f"one page of it    zae report {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train on handwritten digits, and watch it.")
    parser.add_argument("folder", type=Path, nargs="?", default="runs/watch", help="the run's (default: %(default)s)")
    main(parser.parse_args().folder)
