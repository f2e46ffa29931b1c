"""Tests with the frameworks' own packages, collected by ``pytest -m frameworks`` only; ``nox -s frameworks`` installs the packages."""


def pytest_ignore_collect(config):
    return None if "frameworks" in config.option.markexpr else True
