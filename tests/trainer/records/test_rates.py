"""The learning rates of an optimizer that has several groups."""

import pytest
import torch

from tests.helpers import PlainTrainer, loader, make, mlp
from zae_engine.logs.merging import records_of
from zae_engine.logs.reading import read_run
from zae_engine.trainer.addons import CSVLoggerAddon


def groups(model, *names, **options):
    parts = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[3].parameters()}]
    named = [part | ({"name": name} if name else {}) for part, name in zip(parts, names or ("", ""), strict=True)]
    return torch.optim.SGD(named, lr=0.1, **options)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ((), ["lr/0", "lr/1"]),
        (("backbone", "head"), ["lr/backbone", "lr/head"]),
        (("same", "same"), ["lr/0", "lr/1"]),
        (("backbone", ""), ["lr/0", "lr/1"]),
        (("back\nbone", "head"), ["lr/0", "lr/1"]),
    ],
)
def test_each_group_has_its_rate_in_every_row(names, wanted):
    model = mlp()
    optimizer = groups(model, *names)
    trainer = make(model=model, optimizer=optimizer, scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1))
    row = trainer.run(2, loader())[-1]
    assert [name for name in row if name.startswith("lr")] == ["lr", *wanted]
    assert [row[name] for name in ("lr", *wanted)] == pytest.approx([0.001, 0.001, 0.01])


def test_one_group_is_the_learning_rate():
    row = make().run(1, loader())[-1]
    assert {name: value for name, value in row.items() if name.startswith("lr")} == {"lr": 0.1}


def test_loggers_lines_and_curves_have_them(tmp_path, capsys):
    class Adding(PlainTrainer):
        def run_epoch(self, batches, **kwargs):
            if self.progress_checker.get_epoch() == 2:
                self.optimizer.add_param_group({"params": list(self.model[0].parameters()), "lr": 0.02})
            super().run_epoch(batches, **kwargs)

    model = mlp()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    trainer = make(
        Adding.add_on(CSVLoggerAddon), model=model, optimizer=optimizer, save_path=tmp_path, log_every=2, log_bar=True
    )
    trainer.run(2, loader())
    records = records_of(tmp_path)
    assert [record.values.get("lr/1") for record in records] == [None] * 3 + [0.02] * 3
    assert records[-1].values["lr"] == records[-1].values["lr/0"] == 0.1
    said = capsys.readouterr().err
    assert "lr 1.00e-01  " in said
    assert "lr 1.00e-01 2.00e-02  " in said
    assert {"lr/0", "lr/1"} <= set(read_run(tmp_path).columns)
    assert trainer.history.plot().axes[-1].get_legend_handles_labels()[1] == ["0", "1"]
