"""What the build decides, and what the package says of it."""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

import pspl_cuda
from pspl_cuda import ops

ROOT = Path(__file__).parent.parent
NEEDS_SOURCES = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
NEEDS_SETUPTOOLS = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True, check=False).returncode != 0,
    reason="setuptools is not installed",
)


def run_setup(*arguments, **environment):
    """setup.py in a process of its own: (exit code, what it printed)."""
    result = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_force_fails_loudly_without_cuda():
    code, printed = run_setup("--name", PSPL_CUDA="force")
    assert code != 0
    assert "PSPL_CUDA=force, but the CUDA kernels can't be built: torch" in printed
    assert "is not a CUDA build" in printed


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_off_is_said():
    code, printed = run_setup("--name", PSPL_CUDA="off")
    assert code == 0
    assert "CUDA kernels: no, because PSPL_CUDA=off" in printed


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_unknown_switch_is_refused():
    code, printed = run_setup("--name", PSPL_CUDA="yes")
    assert code != 0
    assert "PSPL_CUDA is 'yes'; expected auto, force or off." in printed


def test_backend_info_is_plain_and_honest():
    info = pspl_cuda.backend_info()
    assert json.loads(json.dumps(info)) == info
    for name in ("cpu", "cuda"):
        assert info[name]["available"] == (info[name]["reason"] is None)
        assert info[name]["available"] == torch._C._dispatch_has_kernel_for_dispatch_key(
            "pspl_cuda::loss", name.upper()
        )
    if torch.version.cuda is None:
        assert not info["cuda"]["available"]
    if info["cpu"]["available"]:
        assert info["cpu"]["instruction_set"] in ("avx512", "avx2", "baseline")


def test_less_than_the_processor_has_can_be_asked_for():
    if not pspl_cuda.backend_info()["cpu"]["available"]:
        pytest.skip("the CPU kernel is not built")
    code = "import pspl_cuda; print(pspl_cuda.backend_info()['cpu']['instruction_set'])"
    environment = {**os.environ, "PSPL_CPU_ISA": "baseline"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "baseline"


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 20, 24, generator=generator), torch.rand(2, 3, 20, 24, generator=generator)


def test_missing_kernel_falls_back_and_warns_once(monkeypatch, recwarn):
    """users.md: a missing or broken extension must fall back with one clear warning."""
    monkeypatch.setitem(ops._WHY_NOT, "cpu", "it was left out by this test.")
    monkeypatch.setattr(ops, "_warned", set())
    monkeypatch.delenv("PSPL_BACKEND", raising=False)
    sr, hr = images()
    expected = pspl_cuda.reference.pspl_loss(sr, hr, 1.0)
    for _ in range(3):
        assert torch.equal(pspl_cuda.pspl_loss(sr, hr, 1.0), expected)
    messages = [str(warning.message) for warning in recwarn if "pspl_cuda" in str(warning.message)]
    assert len(messages) == 1
    assert "it was left out by this test." in messages[0]
    assert 'backend="reference"' in messages[0]


def test_explicit_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(ops._WHY_NOT, "cpu", "it was left out by this test.")
    sr, hr = images()
    with pytest.raises(RuntimeError, match="it was left out by this test"):
        pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu")


def test_environment_variable_replaces_auto(monkeypatch, recwarn):
    monkeypatch.setenv("PSPL_BACKEND", "reference")
    monkeypatch.setattr(ops, "_warned", set())
    sr, hr = images()
    assert torch.equal(pspl_cuda.pspl_loss(sr, hr, 1.0), pspl_cuda.reference.pspl_loss(sr, hr, 1.0))
    assert not [warning for warning in recwarn if "pspl_cuda" in str(warning.message)]
    monkeypatch.setenv("PSPL_BACKEND", "tpu")
    with pytest.raises(ValueError, match="backend is 'tpu'"):
        pspl_cuda.pspl_loss(sr, hr, 1.0)


def test_source_folder_finds_the_installed_kernels(tmp_path):
    """After ``pip install .``, Python started in the source folder imports the sources, which hold no kernels."""
    if not pspl_cuda.backend_info()["cpu"]["available"]:
        pytest.skip("the CPU kernel is not built")
    if not Path(str(distribution("pspl_cuda").locate_file("pspl_cuda"))).exists():
        pytest.skip("installed in editable mode: source and installed package are one")
    copy = tmp_path / "pspl_cuda"
    copy.mkdir()
    for source in Path(ops.__file__).parent.glob("*.py"):
        (copy / source.name).write_text(source.read_text())
    # What pip install . leaves in the source folder, which stands for an installed distribution to who starts there.
    left = tmp_path / "pspl_cuda.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: pspl_cuda\nVersion: 0.1.0\n")
    code = "import pspl_cuda; print(pspl_cuda.__file__); print(pspl_cuda.backend_info()['cpu']['available'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    path, available = result.stdout.split()
    assert Path(path).parent == copy
    assert available == "True"
