"""What a notebook shows, in a real Jupyter kernel; needs the extra ``dev``."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In a process of its own, since Jupyter's client brings warnings that are not this library's.
CELLS = """
import nbclient, nbformat
sources = [
    "from tests.helpers import *; trainer = make(MLPTrainer, log_bar=True)",
    "trainer.run(2, loader(), loader(20))",
    "trainer.history.plot()",
    "trainer.run(1, loader())[-1]['epoch']",
]
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
for cell in book.cells:
    for output in cell.outputs:
        print(output.output_type, *output.get("data", {}), output.get("text", ""))
"""


def test_a_notebook_has_its_own_bar_and_shows_the_picture():
    for module in ("nbclient", "ipykernel", "ipywidgets"):
        pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", CELLS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "application/vnd.jupyter.widget-view+json" in done.stdout
    assert "image/png" in done.stdout
    assert "Epoch 2/2 | train_loss" in done.stdout
