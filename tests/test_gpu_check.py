"""benchmarks/gpu_check.py where there is no GPU: it says what is missing, and what it had is on disk."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_check.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the source tree")


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_says_that_there_is_no_gpu(tmp_path):
    command = [sys.executable, SCRIPT, "--no-build", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert result.returncode == 0, result.stderr
    report = (tmp_path / "no-gpu-check.md").read_text()
    assert "| GPU | skipped | torch sees none" in report
    assert "| nvcc | skipped | nvcc is not on the PATH" in report
    assert f"torch: {torch.__version__}" in report


def test_missing_sanitizer_is_said(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    check = gpu_check.Check(tmp_path, 100)
    check.sanitizers()
    assert "| compute-sanitizer | skipped | it is not on the PATH |" in (tmp_path / "no-gpu-check.md").read_text()


def test_every_part_leaves_its_verdict(gpu_check, tmp_path):
    check = gpu_check.Check(tmp_path, 100)
    assert check.run("good", [sys.executable, "-c", "print('all is well')"], 60) is not None
    assert check.run("bad", [sys.executable, "-c", "raise SystemExit('no, it | is not')"], 60) is None
    assert check.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 5) is None
    report = (tmp_path / "no-gpu-check.md").read_text()
    assert "| good | passed | all is well |" in report
    assert "| bad | failed | exit code 1: no, it / is not |" in report
    assert "| slow | cut | after 5 s:" in report
    assert "all is well" in (tmp_path / "no-gpu-good.log").read_text()


def test_nothing_starts_after_the_deadline(gpu_check, tmp_path):
    check = gpu_check.Check(tmp_path, 1)
    assert check.run("late", [sys.executable, "-c", "open('ran', 'w')"], 60) is None
    assert not (tmp_path / "ran").exists()
    assert "| late | cut | no time left |" in (tmp_path / "no-gpu-check.md").read_text()
