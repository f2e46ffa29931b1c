"""Which compiled kernels are loaded, and what the package says where one is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pspl_cuda
from pspl_cuda import _library, functional


def test_backend_info_is_plain_and_honest():
    info = pspl_cuda.backend_info()
    assert json.loads(json.dumps(info)) == info
    for name in ("cpu", "cuda"):
        assert info[name]["available"] == (info[name]["reason"] is None)
        assert info[name]["available"] or info[name]["reason"].endswith(".")
        assert info[name]["available"] == torch._C._dispatch_has_kernel_for_dispatch_key(
            "pspl_cuda::loss", name.upper()
        )
    assert info["torch"] == torch.__version__
    assert isinstance(info["cuda"]["architectures"], list)
    if torch.version.cuda is None:
        assert not info["cuda"]["available"]
    if info["cpu"]["available"]:
        assert info["cpu"]["instruction_set"] in ("avx512", "avx2", "baseline")


def test_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """git clone makes one. Python takes it for a namespace package where the package is found by a hook, not on the path."""
    (tmp_path / "pspl_cuda").mkdir()
    command = [sys.executable, "-c", "import pspl_cuda; print(pspl_cuda.__file__)"]
    # Beside such a folder, and in it, where none is found.
    beside, elsewhere = (
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        for folder in (tmp_path, tmp_path / "pspl_cuda")
    )
    assert beside == elsewhere
    assert Path(beside).name == "__init__.py"  # a namespace package has no file


@pytest.fixture(params=["editable", "regular"])
def clone(request, tmp_path, monkeypatch):
    """A copy of the package and the C++ sources. The CPU library is in the copy, or in a package that is installed elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / "csrc").exists():
        pytest.skip("needs the source tree")
    if not pspl_cuda.backend_info()["cpu"]["available"]:
        pytest.skip("the CPU kernel is not built")
    folder = tmp_path / "clone"
    for name in ("pspl_cuda", "csrc"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"))
    libraries = folder / "pspl_cuda"
    if request.param == "regular":
        libraries = tmp_path / "site" / "pspl_cuda"
        libraries.mkdir(parents=True)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        # What pip install . leaves in the source folder stands for a distribution too.
        for metadata in ("site/pspl_cuda-0.1.0.dist-info/METADATA", "clone/pspl_cuda.egg-info/PKG-INFO"):
            (tmp_path / metadata).parent.mkdir()
            (tmp_path / metadata).write_text("Metadata-Version: 2.1\nName: pspl_cuda\nVersion: 0.1.0\n")
    for name in ("_cpu.so", "_build.json"):
        shutil.copy(_library._PACKAGE / name, libraries / name)
    return folder


def backend_info_in(folder):
    code = "import json, pspl_cuda; print(json.dumps([pspl_cuda.__file__, pspl_cuda.backend_info()]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    path, info = json.loads(result.stdout)
    assert Path(path).parent == folder / "pspl_cuda"
    return info


def test_source_folder_finds_the_built_kernels(clone):
    """After ``pip install .``, Python started in the source folder imports the sources, which hold no kernels."""
    assert backend_info_in(clone)["cpu"]["available"]


@pytest.mark.parametrize(
    ("changed", "stale"), [("cpu/dispatch.h", True), ("bindings/operators.h", True), ("cuda/forward.cu", False)]
)
def test_library_built_from_other_sources_is_not_loaded(changed, stale, clone):
    """After git pull in an editable installation, or in a newer clone than the installed package."""
    path = clone / "csrc" / changed
    path.write_text(path.read_text() + "// new\n")
    message = f"it was built from other sources than those in {clone / 'csrc'}: reinstall the package."
    assert backend_info_in(clone)["cpu"]["reason"] == (message if stale else None)


def test_less_than_the_processor_has_can_be_asked_for(tmp_path):
    if not pspl_cuda.backend_info()["cpu"]["available"]:
        pytest.skip("the CPU kernel is not built")
    code = "import pspl_cuda; print(pspl_cuda.backend_info()['cpu']['instruction_set'])"
    environment = {**os.environ, "PSPL_CPU_ISA": "baseline"}
    command = [sys.executable, "-c", code]  # away from the clone, which may have kernels for another torch
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "baseline"


def test_unknown_instruction_set_is_said():
    environment = {**os.environ, "PSPL_CPU_ISA": "avx3"}
    command = [sys.executable, "-c", "import pspl_cuda"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "PSPL_CPU_ISA is 'avx3'; expected one of avx512, avx2, baseline" in result.stderr


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0 9.0", (7, 5), False),
        ("8.0 9.0", (8, 0), True),
        ("8.0 9.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0 9.0", (10, 0), False),
        ("8.0 9.0+PTX", (12, 0), True),
        ("12.0+PTX", (9, 0), False),
        ("7.5 12.0+PTX", (11, 0), False),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
    ],
)
def test_architecture_is_compared_with_the_gpu(architectures, capability, runs):
    assert (_library._gpu_mismatch(architectures.split(), capability) is None) == runs


@pytest.fixture
def turing(monkeypatch):
    """A build for newer GPUs than the one here."""
    monkeypatch.setitem(_library.reasons, "cuda", None)
    monkeypatch.setattr(_library, "_BUILD", {"_cuda": {"toolkit": "13.0", "architectures": ["8.0", "9.0"]}})
    _library.gpu_reason.cache_clear()
    monkeypatch.setattr(functional, "_warned", set())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    yield torch.device("cuda", 0)
    _library.gpu_reason.cache_clear()


WRONG_GPU = "it was built for sm_80, sm_90; this device is sm_75: reinstall with TORCH_CUDA_ARCH_LIST=7.5."


def test_gpu_without_its_architecture_falls_back_with_the_remedy(turing):
    with pytest.warns(UserWarning, match=re.escape(WRONG_GPU)):
        assert functional.use_kernels("auto", turing) is False
    with pytest.raises(
        RuntimeError, match="backend is 'cuda', but the cuda kernel is not available: " + re.escape(WRONG_GPU)
    ):
        functional.use_kernels("cuda", turing)


def test_backend_info_speaks_of_the_gpu_that_is_here(turing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    info = pspl_cuda.backend_info()["cuda"]
    assert (info["available"], info["reason"]) == (False, WRONG_GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pspl_cuda.backend_info()["cuda"]["available"]


@pytest.mark.parametrize(
    ("library", "version", "cuda", "machine", "message"),
    [
        ("_cpu", "2.14.1+cu130", "13.0", "x86_64", None),
        ("_cuda", "2.14.1+cu130", "13.2", "x86_64", None),
        ("_cpu", "2.13.0+cpu", None, "x86_64", None),
        ("_cpu", "2.10.0", None, "x86_64", None),
        (
            *("_cpu", "2.9.1", None, "x86_64"),
            "it was built for torch 2.10 and later, and this is torch 2.9.1: reinstall the package.",
        ),
        ("_cpu", "2.13.0", None, "aarch64", "it was built for x86_64, and this processor is aarch64: reinstall"),
        ("_cuda", "2.13.0+cpu", None, "x86_64", "torch 2.13.0+cpu is not a CUDA build: install one that is."),
        ("_cuda", "2.13.0+cu126", "12.6", "x86_64", None),
    ],
)
def test_library_of_another_machine_or_torch_is_refused(library, version, cuda, machine, message, monkeypatch):
    monkeypatch.setattr(_library, "_driver_cuda", lambda: None)
    build = {"torch": "2.13.0", "machine": "x86_64", "stable_abi": True, "_cuda": {"toolkit": "13.0"}}
    reason = _library._mismatch(library, build, version, cuda, machine)
    assert reason is None if message is None else message in reason


@pytest.mark.parametrize(
    ("version", "usable"), [("2.6.0+cpu", True), ("2.6.1", True), ("2.7.0", False), ("2.13.0", False)]
)
def test_library_of_one_torch_is_refused_under_others(version, usable):
    """Without the stable ABI, it needs the C++ API of a minor version."""
    build = {"torch": "2.6.0+cu124", "machine": "x86_64", "stable_abi": False}
    reason = _library._mismatch("_cpu", build, version, None, "x86_64")
    expected = f"it was built for torch 2.6, and this is torch {version}: reinstall the package."
    assert reason == (None if usable else expected)


def test_torch_below_the_oldest_is_refused_at_import():
    code = "import torch; torch.__version__ = '2.3.1+cu121'; del torch.library.register_fake; import pspl_cuda"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = "ImportError: torch 2.3.1+cu121 is older than 2.4, which pspl_cuda needs: upgrade torch."
    assert result.stderr.splitlines()[-1] == message


@pytest.mark.parametrize(
    ("driver", "refused"), [((12, 8), True), ((13, 0), False), ((13, 2), False), ((14, 0), False), (None, False)]
)
def test_driver_must_be_as_new_as_the_toolkit(driver, refused, monkeypatch):
    """The runtime in the library needs it; the CPU library has none."""
    monkeypatch.setattr(_library, "_driver_cuda", lambda: driver)
    build = {"_cuda": {"toolkit": "13.0"}}
    reason = _library._mismatch("_cuda", build, "2.10.0+cu128", "12.8", "x86_64")
    expected = (
        "it was built with CUDA 13.0, and the NVIDIA driver supports CUDA 12.8: update the driver (580 or later), or install a "
        "CUDA 12 toolkit, set CUDA_HOME to it, and reinstall the package."
    )
    assert reason == (expected if refused else None)
    assert _library._mismatch("_cpu", build, "2.10.0+cu128", "12.8", "x86_64") is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_version_of_the_driver(tmp_path, monkeypatch):
    """Asked from the driver's library, whatever torch was built with."""
    (tmp_path / "driver.c").write_text("int cuDriverGetVersion(int *version) { *version = 12080; return 0; }")
    driver = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", driver, tmp_path / "driver.c"], check=True)
    load = _library.ctypes.CDLL
    monkeypatch.setattr(_library.ctypes, "CDLL", lambda name: load(str(driver)) if name == driver.name else load(name))
    assert _library._driver_cuda() == (12, 8)
    monkeypatch.setattr(_library.ctypes, "CDLL", lambda name: load(str(tmp_path / "none")))
    assert _library._driver_cuda() is None
