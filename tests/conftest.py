from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("helpers")
# For the benchmarks package. At the end, so that the installed pspl_cuda is tested and not the one in the source folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from helpers import backends, compiled  # noqa: E402

# An override in the shell must not decide what the tests of "auto" see.
os.environ.pop("PSPL_BACKEND", None)


def _set_up_hypothesis():
    """Each test draws 25 examples, the same in every run, so that a new failure comes from the change at hand; or as many as the
    environment variable PSPL_EXAMPLES says, others in each run. A failure prints how to reproduce it."""
    try:
        from hypothesis import HealthCheck, settings
    except ImportError:  # tools/gpu_check.py runs the other tests without it
        return
    examples = os.environ.get("PSPL_EXAMPLES")
    few = {"max_examples": 25, "derandomize": True, "database": None}
    settings.register_profile(
        "pspl_cuda",
        **({"max_examples": int(examples), "print_blob": True} if examples else few),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    settings.load_profile("pspl_cuda")


_set_up_hypothesis()


# ---------------------------------------------------------------- tiers

# Marks of the tests that a run without -m leaves out.
TIERS = {
    "deep": "sanitizers, planted bugs, all CUDA architectures, more cases of the emulated kernels",
    "large": "needs 16 GB of memory",
}
_left_out = Counter()

# The longest test compiles every CUDA kernel for all architectures: four minutes on two cores.
TIMEOUT_SECONDS = 1200


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at its options
def pytest_cmdline_main(config):
    """Without -m, run the quick tests. Run all folders in parallel, and what is named on the command line in one process.
    With pytest-timeout, a test that hangs fails and shows where."""
    option = config.option
    option.markexpr = option.markexpr or " and ".join(f"not {tier}" for tier in TIERS)
    if getattr(option, "timeout", 0) is None and "PSPL_EXAMPLES" not in os.environ:
        option.timeout = TIMEOUT_SECONDS
    # A process of pytest-xdist must not start others, nor a pytest that a test starts there.
    everything = config.args_source == config.ArgsSource.TESTPATHS and "PYTEST_XDIST_WORKER" not in os.environ
    if everything and not option.usepdb and getattr(option, "numprocesses", 0) is None and compiled.PROCESSES > 1:
        option.numprocesses, option.dist = compiled.PROCESSES, "loadgroup"


def pytest_configure(config):
    for tier, meaning in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {meaning}")
    config.addinivalue_line("markers", "deep_on(*backends): deep on these backends")
    config.addinivalue_line("markers", "not_on(*backends): not collected for these backends")
    config.addinivalue_line("markers", "frameworks: needs the packages that nox -s frameworks installs")
    if not config.pluginmanager.hasplugin("xdist"):
        config.addinivalue_line("markers", "xdist_group(name): tests of a group run in one process")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
        torch.set_num_threads(1)


def _backend_marks(item, mark):
    return {name for marker in item.iter_markers(mark) for name in marker.args}


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items):
    kept = []
    for item in items:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        if backend in _backend_marks(item, "deep_on"):
            item.add_marker("deep")
        unsuitable = {name for fixture, names in UNSUITABLE.items() if fixture in item.fixturenames for name in names}
        if backend is None or backend not in unsuitable | _backend_marks(item, "not_on"):
            kept.append(item)
    items[:] = kept


def pytest_deselected(items):
    left_out = [tier for tier in TIERS if f"not {tier}" in items[0].config.option.markexpr]
    _left_out.update(tier for item in items for tier in left_out if item.get_closest_marker(tier))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Each process of pytest-xdist has collected all tests and leaves out the same."""
    _left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}) if not _left_out else {})


def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter and _left_out and not hasattr(config, "workerinput"):
        parts = [f"{_left_out[tier]} {tier} (pytest -m {tier}): {TIERS[tier]}" for tier in TIERS if _left_out[tier]]
        reporter.write_line(f"Tests left out: {'; '.join(parts)}. Everything but large: pytest -m 'not large'.")


def pytest_report_header(config):
    state = {name: backends.why_not(name) or "yes" for name in backends.selected()}
    for name in set(state) - set(backends.collected()):
        state[name] += ", not collected"
    return "pspl_cuda backends: " + "; ".join(f"{name}: {why}" for name, why in state.items())


# ---------------------------------------------------------------- backends


def pytest_ignore_collect(collection_path):
    if collection_path.name == "test_gpu.py" and "cuda" not in backends.collected():
        return True
    return None


# Backends that a test with the fixture is not collected for.
UNSUITABLE = {
    "fused": ["reference"],
    # The emulation is bound by pybind11, which torch can't trace or record.
    "dispatched": ["emulated"],
}


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
    return _backends[name]


@pytest.fixture
def fused(backend):
    """The backends that are fused kernels."""
    return backend


@pytest.fixture
def dispatched(backend):
    """The backends that are operators of torch, or made of them."""
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
