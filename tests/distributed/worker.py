"""Run some cases in this process and keep what they return: python -m tests.distributed.worker FOLDER CASE…"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
import warnings

import torch

from tests.distributed.cases import cases
from tests.family import TOLD_BY


def main(folder: str, *names: str) -> None:
    faulthandler.register(TOLD_BY)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    rank = os.environ.get("RANK", "0")
    known = cases(folder)
    for name in names:
        try:
            found = known[name]()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
            torch.save(found, f"{folder}/{name}.{rank}.pt")
            raise
        torch.save(found, f"{folder}/{name}.{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
