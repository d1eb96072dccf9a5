"""Where the recorded trace of a real model is found, if it is."""

import os
from pathlib import Path

import pytest

REAL_TRACE = "qwen3-30b-a3b.route.csv"


@pytest.fixture(scope="session")
def real_trace_path():
    """ROUTE_TRACES names the folder of the traces; the tests that need one skip themselves without."""
    path = Path(os.environ.get("ROUTE_TRACES", "../shared/traces")) / REAL_TRACE
    if not path.exists():
        pytest.skip(f"{REAL_TRACE} not found: set ROUTE_TRACES to its folder")
    return path


FAST_POLICIES = ("lru", "lrfu", "opt")
"""One of each kind: each policy is compiled when it first runs, for seconds."""


def pytest_collection_modifyitems(items):
    """Marks what runs any other policy as slow."""
    from dwellmoe.cache.policies.base import POLICIES
    from dwellmoe.registry import name_of

    others = {*POLICIES.names()} - {*FAST_POLICIES}
    for item in items:
        here = Path(__file__).parent in item.path.parents
        values = item.callspec.params.values() if here and hasattr(item, "callspec") else ()
        if others & {name_of(value) for value in values if isinstance(value, str)}:
            item.add_marker(pytest.mark.slow)
