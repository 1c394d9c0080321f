"""Makes sure that benchmarks run one at a time."""

from __future__ import annotations


def pytest_xdist_auto_num_workers() -> int:
    return 0
