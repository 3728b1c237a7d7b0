"""Train a small network on scikit-learn's handwritten digits, and draw its curves.

python examples/digits.py
accelerate launch --config_file accelerate_configs/cpu_2.yaml --num_processes 3 examples/digits.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from zae_engine import Trainer

SEED = 0
EPOCHS = 12


class DigitsTrainer(Trainer):
    def train_step(self, batch):
        images, labels = batch
        logits = self.model(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        return {"loss": loss, "acc": (logits.argmax(1) == labels).float().mean()}

    test_step = train_step


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
    )


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    train, held_out = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(SEED))
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=256)


def main() -> None:
    torch.manual_seed(SEED)  # the weights are drawn before there is a trainer
    model = network()
    train, held_out = loaders()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs=EPOCHS, steps_per_epoch=len(train))

    trainer = DigitsTrainer(
        model,
        optimizer=optimizer,
        scheduler=schedule,
        scheduler_step_on_batch=True,
        gradient_clip=1.0,
        seed=SEED,
        shards=12,  # 1, 2, 3, 4, 6 and 12 processes train the same bits
        monitor="acc",
    )
    history = trainer.run(n_epoch=EPOCHS, loader=train, valid_loader=held_out)

    trainer.apply_weights()  # the best epoch's
    trainer.save_model("digits.safetensors")
    history.plot("digits.png")
    if trainer.is_main_process:
        best, last = history.best("test_acc", "max"), history[-1]
        print(f"last epoch: loss {last['train_loss']:.6g}, held-out loss {last['test_loss']:.6g}")
        print(f"best epoch: {best['epoch']}, held-out accuracy {best['test_acc']:.4%}, loss {best['test_loss']:.6g}")
        print("weights in digits.safetensors, curves in digits.png")


if __name__ == "__main__":
    main()
