"""Processes that are none: in one thread and of one opinion, or in threads that wait for each other."""

from __future__ import annotations

import threading

import torch


class Alike:
    """Processes of which each has the same to say, and hears from a list what process 0 has said before."""

    def __init__(self, count, index, said=None):
        self.count, self.index, self.first = count, index, index == 0
        self.said, self.heard = [] if said is None else said, 0

    def gather(self, value):
        return [value] * self.count

    def from_first(self, value):
        if self.first:
            self.said.append(value)
        self.heard += 1
        return self.said[self.heard - 1]


class Together(Alike):
    """Processes that are threads, which wait for each other and see what each has put down."""

    def __init__(self, count, index, barrier, table):
        super().__init__(count, index)
        self._barrier, self._table = barrier, table

    def gather(self, value):
        self._table[self.index] = value
        self._barrier.wait()
        found = list(self._table)
        self._barrier.wait()
        return found

    def numbers(self, values):
        return torch.stack([torch.as_tensor(v).double().reshape(()) for v in values])

    def sum(self, values):
        return torch.stack(self.gather(self.numbers(values))).sum(0)

    def stack(self, blocks):
        return torch.cat(self.gather(blocks))


def in_threads(count, work):
    """What `work` returns for each process."""
    barrier, table, found, failed = threading.Barrier(count, timeout=20), [None] * count, [None] * count, []

    def one(index):
        try:
            found[index] = work(Together(count, index, barrier, table))
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found
