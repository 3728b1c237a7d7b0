"""What clients draw is not drawn from the training's streams."""

import random
import sys

import pytest

from zae_engine.logs.client_streams import import_apart


def test_a_client_that_waits_a_random_time_draws_nothing_of_the_training_s():
    retry = pytest.importorskip("urllib3.util.retry")
    import_apart("urllib3")
    before = random.getstate()
    failed = (retry.RequestHistory("GET", "http://localhost", None, None, None),) * 3
    waits = retry.Retry(total=9, backoff_factor=0.1, backoff_jitter=1.0, history=failed)
    assert len({waits.get_backoff_time() for _ in range(5)}) > 1
    assert random.getstate() == before


def test_what_an_import_draws_is_put_back(tmp_path, monkeypatch):
    (tmp_path / "drawing_client.py").write_text("import random, numpy\nrandom.random(); numpy.random.rand()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    random.seed(3)
    before = random.getstate()
    import_apart("drawing_client")
    assert "drawing_client" in sys.modules
    assert random.getstate() == before
    assert sys.modules["drawing_client"].random is random  # it is no client that is known
