"""Runs the check that every kernel was run behind the tests that run them, and all in one of pytest's workers."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name == "test_every_kernel_was_replayed")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("ptx"))
