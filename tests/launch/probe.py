"""Run by each of several processes: joins them by way of the library, adds up their numbers, and says what it saw."""

import json
import sys
import warnings

import torch

from zae_engine.launch.environment import LaunchError
from zae_engine.trainer.processes.device import make_accelerator


def say(row):
    sys.stdout.write(json.dumps(row) + "\n")  # in one piece, since others write there, too
    sys.stdout.flush()


def main(device=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            accelerator = make_accelerator(device)
        except (LaunchError, ValueError) as error:
            say({"refused": str(error)})
            sys.exit(3)
    total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), "sum").item()
    seen = {"rank": accelerator.process_index, "local": accelerator.local_process_index, "total": total}
    seen |= {"size": accelerator.num_processes, "device": str(accelerator.device), "threads": torch.get_num_threads()}
    say({**seen, "warned": [str(w.message) for w in caught]})
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
