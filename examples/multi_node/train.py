"""A line is fitted by as many processes as a launcher starts; the result is the same for any number of them.

Stopped by a signal, it saves and exits with 75; started again, it goes on from there.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zae_engine import Trainer
from zae_engine.trainer.addons import StateManagerAddon


class LineTrainer(Trainer):
    def train_step(self, batch):
        x, y = batch
        return {"loss": nn.functional.mse_loss(self.model(x), y)}

    test_step = train_step


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(1000, 4)
    y = x @ torch.tensor([[1.0], [2.0], [3.0], [4.0]]) + 5
    model = nn.Linear(4, 1)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)  # 32 on all processes together
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = LineTrainer.add_on(StateManagerAddon)(model, optimizer=optimizer, seed=0, save_path="line")
    trainer.run(5, loader, resume="auto")  # from the newest checkpoint in save_path, if there is one
    if trainer.accelerator.is_main_process:
        weights = ", ".join(f"{w:.6f}" for w in [*model.weight[0].tolist(), model.bias.item()])
        print(f"{trainer.accelerator.num_processes} processes: {weights}")
