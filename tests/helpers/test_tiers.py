"""A run without -m leaves out the deep tests and says so; what tests compile is compiled once (helpers/compiled.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def collect(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.deep  # it collects tests twice
def test_deep_tests_are_left_out_and_the_last_line_says_so():
    folder = "tests/experiments/test_networks.py"
    quick, both = (collect(folder, *options) for options in ([], ["-m", "not large"]))
    tests, all_tests = ({line for line in lines if "::" in line} for lines in (quick, both))
    assert set() < tests < all_tests
    assert quick[-1].startswith(f"Tests left out: {len(all_tests - tests)} deep (pytest -m deep): ")
    assert "left out" not in both[-1]


# ---------------------------------------------------------------- compiled objects
