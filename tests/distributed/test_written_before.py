"""Run folders that older versions wrote on two processes go on on two; the rest is in tests/written_before."""

import pytest

from tests.written_before.comparing import assert_ends_alike, on


@pytest.mark.parametrize("folder", on(2))
def test_it_ends_as_if_it_had_never_been_interrupted(results, folder):
    for part in results(f"written-{folder.replace('/', '-')}", 2):
        assert_ends_alike(part, folder)
