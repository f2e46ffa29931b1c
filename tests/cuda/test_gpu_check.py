"""benchmarks/gpu_check.py where there is no GPU: it says what is missing, and what it had is on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check

SCRIPT = Path(gpu_check.__file__)
ROOT = SCRIPT.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_says_that_there_is_no_gpu(tmp_path):
    command = [sys.executable, SCRIPT, "--no-build", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert result.returncode == 0, result.stderr
    report = (tmp_path / "no-gpu-check.md").read_text()
    assert "| GPU | skipped | torch sees none" in report
    assert "| nvcc | skipped | nvcc is not on the PATH" in report
    assert f"torch: {torch.__version__}" in report


def test_missing_sanitizer_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    check = gpu_check.Check(tmp_path, 100)
    check.sanitizers()
    assert "| compute-sanitizer | skipped | it is not on the PATH |" in (tmp_path / "no-gpu-check.md").read_text()


def test_every_part_leaves_its_verdict(tmp_path):
    check = gpu_check.Check(tmp_path, 100)
    assert check.run("good", [sys.executable, "-c", "print('all is well')"], 60) is not None
    assert check.run("bad", [sys.executable, "-c", "raise SystemExit('no, it | is not')"], 60) is None
    assert check.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 5) is None
    report = (tmp_path / "no-gpu-check.md").read_text()
    assert "| good | passed | all is well |" in report
    assert "| bad | failed | exit code 1: no, it / is not |" in report
    assert "| slow | cut | after 5 s:" in report
    assert "all is well" in (tmp_path / "no-gpu-good.log").read_text()


def test_nothing_starts_after_the_deadline(tmp_path):
    check = gpu_check.Check(tmp_path, 1)
    assert check.run("late", [sys.executable, "-c", "open('ran', 'w')"], 60) is None
    assert not (tmp_path / "ran").exists()
    assert "| late | cut | no time left |" in (tmp_path / "no-gpu-check.md").read_text()


def test_speed_asks_the_benchmark_for_what_it_knows(tmp_path):
    command = gpu_check.speed_command(300, tmp_path)
    assert command[:3] == [sys.executable, "-m", "benchmarks"]
    # No GPU is no reason to refuse the options: the parser sees them first.
    told = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert all(option in told.stdout for option in command if option.startswith("--"))
    wrong = subprocess.run([*command, "--no-such-option"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "unrecognized arguments: --no-such-option" in wrong.stderr


@pytest.mark.parametrize("cut", [False, True])
def test_speed_goes_into_the_report_also_when_it_was_cut(tmp_path, monkeypatch, cut):
    check = gpu_check.Check(tmp_path, 1000)
    commands = []

    def run(part, command, limit, environment=None):
        commands.append(command)
        assert environment["PYTHONPATH"] == str(ROOT)
        if "--from" in command or not cut:
            (tmp_path / "no-gpu.md").write_text("a table of speeds")
        (tmp_path / "no-gpu.json").write_text("[]")
        return None if cut and "--from" not in command else "done"

    monkeypatch.setattr(check, "run", run)
    check.speed()
    assert len(commands) == (2 if cut else 1)
    assert "a table of speeds" in (tmp_path / "no-gpu-check.md").read_text()


def test_rows_of_an_earlier_run_are_not_reported(tmp_path, monkeypatch):
    for name in ("no-gpu.md", "no-gpu.json"):
        (tmp_path / name).write_text("old")
        os.utime(tmp_path / name, (0, 0))
    check = gpu_check.Check(tmp_path, 1000)
    monkeypatch.setattr(check, "run", lambda *_: None)
    check.speed()
    assert not (tmp_path / "no-gpu-check.md").exists()
