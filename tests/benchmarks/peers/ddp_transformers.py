"""transformers: its `Trainer` on several processes, nothing written to disk, its bar on."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate
from transformers import Trainer, TrainingArguments

from ..shares import Problem


def collate(samples: list[Any]) -> dict[str, Tensor]:
    """Its batches are dictionaries."""
    x, y = default_collate(samples)
    return {"x": x, "y": y}


class ShareTrainer(Trainer):
    """The user's part: the loss, and a loader of this process's share of each batch."""

    def __init__(self, problem: Problem, args: TrainingArguments) -> None:
        self.problem = problem
        optimizers = (problem.optimizer(), None)
        super().__init__(model=problem.model, args=args, train_dataset=problem.data, optimizers=optimizers)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader, which is not to be shared out once more."""
        loader = self.problem.own_loader()
        loader.collate_fn = collate
        return loader

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of one batch."""
        self.problem.stamp()
        return cross_entropy(model(inputs["x"]), inputs["y"])


def train(problem: Problem) -> None:
    """Train for one epoch with a constant learning rate and no clipping, as the other rows do."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            ddp_backend="gloo",
        )
        ShareTrainer(problem, arguments).train()
