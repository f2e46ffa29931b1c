"""``python -m tools.gpu_check`` on a machine without a GPU: every part is a valid command, and results are recorded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import gpu_check

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_missing_gpu_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu_check.main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_outputs_and_results_are_kept(tmp_path):
    log = tmp_path / "part.log"
    assert gpu_check.run([sys.executable, "-c", "print('fine')"], log, {}, 60) == ("passed", "fine")
    failing = [sys.executable, "-c", "print('first', flush=True); raise SystemExit('last')"]
    assert gpu_check.run(failing, log, {}, 60) == ("failed, exit code 1", "last")
    assert log.read_text() == "first\nlast\n"
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu_check.run(sleeping, log, {}, 1) == ("failed, stopped after 1 s", "")
    assert gpu_check.run(["no-such-tool"], log, {}, 60) == ("skipped", "no-such-tool is not on the PATH")


@pytest.fixture
def fake_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def test_every_part_is_in_the_report(fake_gpu, monkeypatch, tmp_path):
    ran = []

    def run(command, log, environment, timeout):
        ran.append(log.name)
        assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
        return ("failed, exit code 1", "1 failed | 2 passed") if "pytest" in command else ("passed", "fine")

    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    report = (tmp_path / "some-gpu-check.md").read_text()
    assert ran == [f"some-gpu-{part}.log" for part in gpu_check.commands(tmp_path)]
    assert "| memcheck | passed | fine |" in report
    assert "| tests | failed, exit code 1 | 1 failed / 2 passed |" in report
    assert gpu_check.main(["--out", str(tmp_path), "memcheck"]) == 0
    assert "tests" not in (tmp_path / "some-gpu-check.md").read_text()


def test_a_failed_build_ends_the_check(fake_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "run", lambda *_: ("failed, exit code 1", "no nvcc"))
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    report = (tmp_path / "some-gpu-check.md").read_text()
    assert "| build | failed, exit code 1 | no nvcc |" in report
    assert "memcheck" not in report


def test_the_benchmark_knows_its_options(tmp_path):
    command = gpu_check.commands(tmp_path)["benchmark"]
    result = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_tests_and_sanitizer_cases_exist(tmp_path):
    commands = gpu_check.commands(tmp_path)
    module = commands["memcheck"][-1]
    found = subprocess.run(
        [sys.executable, "-c", f"import {module}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    collected = subprocess.run(
        [*commands["large-tests"], "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
