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
