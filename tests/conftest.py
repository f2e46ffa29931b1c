from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("helpers")
# For the benchmarks package. At the end, so that the installed pspl_cuda is tested and not the one in the source folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from helpers import backends  # noqa: E402

# An override in the shell must not decide what the tests of "auto" see.
os.environ.pop("PSPL_BACKEND", None)


def _choose_hypothesis_profile():
    """By default, hypothesis draws the same examples in every run, so that a new failure comes from the change at hand.

    HYPOTHESIS_PROFILE=thorough draws twenty times as many examples, different ones in each run.
    """
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # benchmarks/gpu_check.py runs the other tests without it
        return
    common = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
    settings.register_profile("default", max_examples=25, derandomize=True, database=None, **common)
    settings.register_profile("thorough", max_examples=500, print_blob=True, **common)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


_choose_hypothesis_profile()


def pytest_configure(config):
    config.addinivalue_line("markers", "heavy: too slow for the emulated kernels")
    config.addinivalue_line("markers", "frameworks: needs the packages that nox -s frameworks installs")


def pytest_collection_modifyitems(config, items):
    """Skip tests marked large unless -m names the mark."""
    if "large" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="needs many gigabytes of memory: run with -m large")
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(skip)


def pytest_report_header(config):
    state = {name: backends.why_not(name) or "yes" for name in backends.selected()}
    for name in set(state) - set(backends.collected()):
        state[name] += ", not collected"
    return "pspl_cuda backends: " + "; ".join(f"{name}: {why}" for name, why in state.items())


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends.collected(), indirect=True)


@pytest.fixture(scope="session")
def _backends():
    return {name: backends.Backend(name) for name in backends.NAMES}


@pytest.fixture
def backend(request, _backends):
    """Each collected backend in turn; one that is unavailable is skipped with the reason."""
    name = request.param
    why_not = backends.why_not(name)
    if why_not:
        pytest.skip(why_not)
    if name == "emulated" and request.node.get_closest_marker("heavy"):
        pytest.skip("too slow for the emulated kernels")
    return _backends[name]


@pytest.fixture
def fused(backend):
    """The backends that are fused kernels."""
    if not backend.fused:
        pytest.skip("only the fused kernels promise this")
    return backend


@pytest.fixture
def rng():
    return np.random.default_rng(20200504)


@pytest.fixture(autouse=True)
def _seed():
    """The same weights and images in every run, in whatever order and process the tests run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_threads():
    """Restore torch's thread count, which some tests change."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
