import json

import pytest

from tests.recovery.harness import finish


@pytest.fixture(scope="session")
def undisturbed(nursery, tmp_path_factory):
    """What comes out of a setup on so many processes when nothing happens; each is run once."""
    known = {}

    def outcome(setup, processes=1, mishaps=None):
        key = json.dumps([setup, processes, mishaps], sort_keys=True)
        if key not in known:
            known[key] = finish(nursery, tmp_path_factory.mktemp("undisturbed"), setup, processes, mishaps)
        return known[key]

    return outcome
