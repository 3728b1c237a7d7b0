"""What a step costs in calls of the package's Python functions: whatever is asked, is asked before the loop."""

import sys
from collections import Counter
from pathlib import Path

from torch.utils.data import DataLoader

import zae_engine
from tests.helpers import data, loader, make

PACKAGE = str(Path(zae_engine.__file__).parent)
MOST = 46  # another one needs a reason


def calls(steps: int) -> Counter:
    """The calls of one epoch of so many steps, by function."""
    trainer, found = make(), Counter()
    trainer.run(1, loader())  # what is asked once a run or a process does not count

    def count(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found[f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"] += 1

    batches = DataLoader(data(8 * steps), batch_size=8)
    sys.setprofile(count)
    try:
        trainer.run(1, batches)
    finally:
        sys.setprofile(None)
    return found


def test_a_step_has_a_budget_of_calls():
    longer = calls(150)
    longer.subtract(calls(50))
    a_step = {name: count / 100 for name, count in longer.items() if count >= 50}
    assert sum(a_step.values()) <= MOST, "\n".join(f"{name}: {count:g}" for name, count in sorted(a_step.items()))
