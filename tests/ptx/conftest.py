"""Runs the check that every kernel was run behind the tests that run them."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name == "test_every_kernel_was_replayed")
