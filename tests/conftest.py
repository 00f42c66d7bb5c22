"""Seeds, poisoned memory, and the tests that only a nightly run pays for."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes many minutes; run with --run-slow or -m slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow") or "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Fresh tensors start as NaN, or the largest integer: an element that a kernel leaves out is seen.

    PyTorch does this in its allocation functions, those behind the stable ABI included (test_hostile.py shows it).
    """
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
