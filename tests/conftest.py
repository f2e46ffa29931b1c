from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import backends

# An override in the shell must not decide what the tests of "auto" see.
os.environ.pop("PSPL_BACKEND", None)


def _choose_hypothesis_profile():
    """What hypothesis draws is the same at every run, so that a failure is about the change at hand.

    HYPOTHESIS_PROFILE=thorough looks for what nobody has found yet: twenty times as many examples, other ones each time.
    """
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # the check on a GPU machine runs what it can
        return
    common = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
    settings.register_profile("default", max_examples=25, derandomize=True, database=None, **common)
    settings.register_profile("thorough", max_examples=500, print_blob=True, **common)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


_choose_hypothesis_profile()


def pytest_configure(config):
    config.addinivalue_line("markers", "heavy: too slow for the emulated kernels")


def pytest_collection_modifyitems(config, items):
    """What is marked large runs only for who asks for it with -m."""
    if "large" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="needs many gigabytes of memory: run with -m large")
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(skip)


def pytest_report_header(config):
    state = {name: backends.why_not(name) or "yes" for name in backends.selected()}
    return "pspl_cuda backends: " + "; ".join(f"{name}: {why}" for name, why in state.items())


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends.selected(), indirect=True)


@pytest.fixture(scope="session")
def _backends():
    return {name: backends.Backend(name) for name in backends.NAMES}


@pytest.fixture
def backend(request, _backends):
    """Everything that computes PSPL, one after the other; what is not there is skipped with the reason."""
    name = request.param
    why_not = backends.why_not(name)
    if why_not:
        pytest.skip(why_not)
    if name == "emulated" and request.node.get_closest_marker("heavy"):
        pytest.skip("too slow for the emulated kernels")
    return _backends[name]


@pytest.fixture
def fused(backend):
    """The backends that are kernels."""
    if not backend.fused:
        pytest.skip("a promise of the fused kernels only")
    return backend


@pytest.fixture
def rng():
    return np.random.default_rng(20200504)


@pytest.fixture(autouse=True)
def _default_threads():
    """A test that changes torch's thread count must not change it for the others."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
