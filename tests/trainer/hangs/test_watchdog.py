"""What the watch keeps of what it has seen."""

import gc
import time
import weakref

import torch

from zae_engine.trainer.hangs.peer_store import Peers, address
from zae_engine.trainer.hangs.waits import Waits
from zae_engine.trainer.hangs.watchdog import Watch, let_go

# A function that stands, as far as its file tells, in an exchange of torch's.
WAITING = compile("def exchange(wait, held):\n    wait(0.3)\n", "/lib/torch/distributed/waiting.py", "exec")


def seen_in_an_exchange(watch):
    """Let the watch see this thread in an exchange that holds a tensor; return a weak reference to that."""
    names = {}
    exec(WAITING, names)
    held = torch.zeros(3)
    for _ in range(100):
        names["exchange"](time.sleep, held)
        if watch._place.kind == "exchange":
            return weakref.ref(held)
    raise AssertionError("the watch has not seen it")


def made():
    waits = Waits(None, 0, 2, lambda: "step 1")
    waits.notice = 1.0  # it looks five times in this time
    return Watch(waits, Peers([address(), address()], 0), lambda: None)


def test_a_watch_that_pauses_holds_nothing_of_what_it_saw():
    watch = made()
    watch.start()
    held = seen_in_an_exchange(watch)
    watch.end()
    gc.collect()
    assert held() is None


def test_a_watch_lets_go_when_it_is_asked_to():
    watch = made()
    watch.start()
    try:
        held = seen_in_an_exchange(watch)
        let_go()
        gc.collect()
        assert held() is None
    finally:
        watch.end()


DEEP = """
import sys, tempfile
from tests.helpers import loader, make

tempfile.tempdir = sys.argv[1]
make().run(1, loader(num_workers=1))
"""


def test_workers_whose_sockets_have_too_long_a_path_are_refused(nursery, tmp_path):
    (tmp_path / "script.py").write_text(DEEP)
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    done = nursery.run(tmp_path / "script.py", deep, timeout=60)
    assert done.returncode == 1
    assert f"send tensors through sockets in {str(deep)!r}, and a socket's path may have 107 characters" in done.stderr
