"""What a step costs in calls of the package's Python functions: whatever is asked, is asked before the loop."""

import pytest

from tests.benchmarks.calls import CONFIGURATIONS, calls_a_step


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_step_has_a_budget_of_calls(name):
    found, most = calls_a_step(name), CONFIGURATIONS[name][3]
    assert sum(found.values()) <= most, "\n".join(f"{n:g} {call}" for call, n in sorted(found.items()))
