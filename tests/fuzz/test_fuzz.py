"""A few cases of each fuzzer. ``python -m tests.fuzz --seconds N --seed S`` runs any number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import __main__ as command
from fuzz import fuzzers
from helpers import backends

CASES = {"oracle": 40, "autograd": 40, "nan": 40, "compile": 3}


@pytest.mark.parametrize("factor", [1, pytest.param(10, marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", CASES)
def test_a_few_cases(name, factor):
    for case in range(CASES[name] * factor):
        try:
            fuzzers.FUZZERS[name](0, case)
        except Exception as error:
            raise AssertionError(f"reproduce: python -m tests.fuzz --only {name} --seed 0 --case {case}") from error


def test_the_command(monkeypatch, capsys):
    """It names what fails, shows its progress, counts, and ends with the counts where it is interrupted."""

    def fuzzer(seed, case):
        if case == 7:
            raise KeyboardInterrupt
        assert case != 5

    monkeypatch.setattr("tests.fuzz.fuzzers.FUZZERS", {"some": fuzzer, "other": fuzzer})
    monkeypatch.setattr(command, "PROGRESS_SECONDS", 0)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seed", "3", "--case", "4", "--cases", "2"])
    assert command.main() == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        line
        for name in ("some", "other")
        for line in (f"reproduce: python -m tests.fuzz --only {name} --seed 3 --case 5", f"{name}: 2 cases, 1 failed")
    ]
    progress = [line.split(",")[:2] for line in err.splitlines() if "remain" in line]
    assert progress[:2] == [["some: 1 cases", " 0 failed"], ["some: 2 cases", " 1 failed"]]

    monkeypatch.setattr(sys, "argv", ["fuzz"])
    assert command.main() == 130
    assert capsys.readouterr().out.splitlines()[1:] == ["some: 7 cases, 1 failed, interrupted"]
    monkeypatch.setattr(sys, "argv", ["fuzz", "--cases", "3"])
    assert command.main() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
def test_a_few_cases_against_guard_pages():
    """All in one process: the first case that reads out of bounds ends it."""
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    fuzzers._in_child("guarded_case", 0, 0, 60)


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("at_end", [True, False])
def test_guard_pages_end_a_process(at_end):
    """What the fuzzer relies on, by reading one element past its image."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]!r}\n"
        "import torch\n"
        "from tests.fuzz.fuzzers import GuardedMemory\n"
        "memory = GuardedMemory(4 * 100)\n"
        f"image = memory.image(torch.rand(1, 10, 10), {at_end})\n"
        "image.sum()\n"
        "print('inside', flush=True)\n"
        "import ctypes\n"
        f"ctypes.string_at(image.data_ptr() + ({400 if at_end else -4}), 4)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "inside\n", result.stderr
    assert result.returncode < 0
