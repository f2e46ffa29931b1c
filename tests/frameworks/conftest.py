"""Tests with the frameworks' own packages, which ``nox -s frameworks`` installs. Collected by ``pytest -m frameworks`` only."""


def pytest_ignore_collect(config):
    return None if "frameworks" in config.option.markexpr else True
