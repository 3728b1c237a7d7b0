"""What a notebook shows, in a real Jupyter kernel; needs the extra ``dev``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[1]

# In a process of its own, since Jupyter's client brings warnings that are not this library's.
EXECUTE = """
import json, sys, nbclient, nbformat
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in json.loads(sys.argv[1])])
nbclient.NotebookClient(book, timeout=120, kernel_name="python3", allow_errors=True).execute()
for cell in book.cells:
    for output in cell.outputs:
        print(output.output_type, *output.get("data", {}).items(), output.get("text", ""))
        print(*output.get("traceback", []))
"""
LOCAL = [
    "from tests.helpers import *; trainer = make(MLPTrainer, log_bar=True)",
    "trainer.run(2, loader(), loader(20))",
    "trainer.history.plot()",
    "trainer.run(1, loader())[-1]['epoch']",
]
SEVERAL = [
    """from tests.helpers import *
from zae_engine.trainer.addons import MultiGPUAddon

class Cell(PlainTrainer):
    fails = False
    def train_step(self, batch):
        if self.progress_checker.get_step() == 1:
            print("said by", self.accelerator.process_index)
            display("displayed")
        if self.fails:
            raise FloatingPointError("broken in a cell")
        return super().train_step(batch)

trainer = make(Cell.add_on(MultiGPUAddon), device=["cpu", "cpu"], log_bar=True)
alone = make(PlainTrainer)""",
    "_ = trainer.run(2, loader(), loader(20))",
    "_ = trainer.run(1, loader(), loader(20)), alone.run(3, loader(), loader(20))",
    "print('apart', largest_difference(weights(trainer.model), weights(alone.model)) <= 1e-6, len(trainer.history))",
    "Cell.fails = True; trainer.run(1, loader())",
    "import psutil; print('left', psutil.Process().children(), len(trainer.history))",
]


def execute(cells):
    for module in ("nbclient", "ipykernel", "ipywidgets"):
        pytest.importorskip(module)
    words = [sys.executable, "-c", EXECUTE, json.dumps(cells)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_notebook_has_its_own_bar_and_shows_the_picture():
    shown = execute(LOCAL)
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "image/png" in shown
    assert "Epoch 2/2 | train_loss" in shown
    assert "Error" not in shown


def test_a_notebook_trains_on_several_devices():
    shown = execute(SEVERAL)
    for text in ("batch 8 = 2 processes", "Epoch 2/2 | train_loss", "Epoch 3/3 | train_loss", "said by 0", "said by 1"):
        assert text in shown
    assert "displayed" in shown
    assert "widget" not in shown.split("apart")[0]
    assert "apart True 3" in shown
    assert "broken in a cell" in shown
    assert "left [] 3" in shown
