"""Signals are noted and nothing else, until a second Ctrl-C."""

import os
import signal
import threading

import pytest

from zae_engine.trainer.processes import signals
from zae_engine.trainer.processes.signals import AGAIN, Interrupted, signals_noted

NAMES = ["SIGINT", "SIGTERM", "SIGUSR1"]


def handlers():
    return [signal.getsignal(getattr(signal, name)) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_noted_by_its_name(name):
    noted, before = [], handlers()
    with signals_noted(noted.append):
        os.kill(os.getpid(), getattr(signal, name))
    assert noted == [name]
    assert handlers() == before


def test_one_ctrl_c_that_is_delivered_twice_is_one():
    noted = []
    with signals_noted(noted.append):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert noted == ["SIGINT", "SIGINT"]


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    monkeypatch.setattr(signals, "_TWICE", 0.0)
    noted = []
    with signals_noted(noted.append):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert noted == ["SIGINT"]


def test_a_handler_that_somebody_put_there_meanwhile_stays():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with signals_noted(print):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_another_thread_changes_nothing():
    before, inside = handlers(), []

    def run():
        with signals_noted(print):
            inside.append(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert inside == [before]


@pytest.mark.usefixtures("starts_processes")
def test_a_process_forked_inside_is_ended_by_sigterm_and_notes_nothing(tmp_path):
    mark = tmp_path / "noted"
    with signals_noted(lambda name: mark.write_text(name)):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert not mark.exists()


def test_the_exit_code_says_run_me_again():
    error = Interrupted("SIGTERM at step 3")
    assert (error.code, str(error)) == (AGAIN, "SIGTERM at step 3")
    assert AGAIN == 75
