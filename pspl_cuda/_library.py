"""Loads the compiled kernels and records why one is unavailable.

A failed load is recorded instead of raised, so that the reference keeps working.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import warnings
from importlib.metadata import distributions
from pathlib import Path

import torch

from ._build import STABLE_TORCH, fingerprint, numbers, why_too_old

_too_old = why_too_old(torch.__version__)
if _too_old is not None:
    raise ImportError(f"{_too_old}.")

# Names in csrc/cpu/dispatch.cpp, for PSPL_CPU_ISA.
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")

# Why the kernels of a device type are unavailable on this machine; None if they are loaded.
reasons: dict[str, str | None] = {}


def _files(package: Path, library: str) -> list[Path]:
    return [path for path in (package / f"{library}.so", package / f"{library}.pyd") if path.exists()]


def _find_package() -> Path:
    """The folder with the build's record and libraries.

    Usually this one. Python started in the source folder after ``pip install .`` imports the sources, beside which nothing was
    built; the libraries of the installed package are then used.
    """
    here = Path(__file__).parent
    # All distributions of that name, because the first may be the metadata that a build left in the source folder.
    installed = (Path(str(found.locate_file("pspl_cuda"))) for found in distributions(name="pspl_cuda"))
    return next((folder for folder in (here, *installed) if (folder / "_build.json").exists()), here)


_PACKAGE = _find_package()
_RECORD = _PACKAGE / "_build.json"
_BUILD: dict = json.loads(_RECORD.read_text()) if _RECORD.exists() else {}


def load() -> None:
    """Load the libraries that were built, and record why another one is unavailable."""
    for device_type in ("cpu", "cuda"):
        reasons[device_type] = _load(f"_{device_type}")
    if os.environ.get("PSPL_CPU_ISA", "baseline") not in INSTRUCTION_SETS:
        warnings.warn(
            f"PSPL_CPU_ISA is {os.environ['PSPL_CPU_ISA']!r}; expected one of {', '.join(INSTRUCTION_SETS)}. The best "
            "instruction set of this processor is used.",
            stacklevel=2,
        )


def _load(library: str) -> str | None:
    files = _files(_PACKAGE, library)
    if not files:
        return _BUILD.get(library, {}).get("reason") or "it was not built; install the package with pip install ."
    mismatch = _mismatch(library, _BUILD, torch.__version__, torch.version.cuda, platform.machine())
    if mismatch is not None:
        return mismatch
    csrc = Path(__file__).parents[1] / "csrc"
    sources = fingerprint(csrc, library)
    if sources and sources != _BUILD.get(library, {}).get("sources"):
        return f"it was built from other sources than those in {csrc}: reinstall the package."
    try:
        torch.ops.load_library(files[0])
    except OSError as error:
        return f"{files[0].name} does not load under torch {torch.__version__} ({error}); reinstall the package."
    return None


def _mismatch(library: str, build: dict, torch_version: str, torch_cuda: str | None, machine: str) -> str | None:
    """Why a library cannot run on this machine and torch, according to its build record; None if it can."""
    if build.get("machine", machine) != machine:
        return f"it was built for {build['machine']}, and this processor is {machine}: reinstall the package here."
    built, here = numbers(build.get("torch", torch_version)), numbers(torch_version)
    if build.get("stable_abi", True):
        usable, others = here >= STABLE_TORCH, "{}.{} and later".format(*STABLE_TORCH)
    else:
        usable, others = here == built, "{}.{}".format(*built)
    if not usable:
        return f"it was built for torch {others}, and this is torch {torch_version}: reinstall the package."
    toolkit = build.get("_cuda", {}).get("toolkit") if library == "_cuda" else None
    if toolkit and torch_cuda is None:
        return f"it was built for CUDA {toolkit}, and torch {torch_version} is not a CUDA build: install one that is."
    driver = _driver_cuda()
    if toolkit and driver and driver[0] < numbers(toolkit)[0]:
        return (
            f"it was built with CUDA {toolkit}, and the NVIDIA driver supports CUDA {driver[0]}.{driver[1]}: update the driver "
            f"({_DRIVERS.get(numbers(toolkit)[0], 'one for that CUDA version')}), or install a CUDA {driver[0]} toolkit, set "
            "CUDA_HOME to it, and reinstall the package."
        )
    return None


# NVIDIA, "CUDA Toolkit Release Notes": the oldest driver of each major version.
_DRIVERS = {12: "525 or later", 13: "580 or later"}


def _driver_cuda() -> tuple[int, int] | None:
    """The CUDA version that the NVIDIA driver supports; None if there is no driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return (version.value // 1000, version.value % 1000 // 10) if version.value else None


def _gpu_mismatch(architectures: list[str], capability: tuple[int, int]) -> str | None:
    """Why kernels compiled for ``architectures`` do not run on a GPU of ``capability``; None if they do.

    A cubin ("9.0") runs on its own and later minor versions of its major one, and with a suffix ("9.0a") on its own only; PTX
    ("9.0+PTX" has both) runs on every later one (CUDA C++ Programming Guide, "Application Compatibility").
    """
    for architecture in architectures:
        number, *ptx = architecture.split("+")
        compiled = numbers(number)
        if number[-1].isalpha():
            runs = compiled == capability
        else:
            runs = (compiled[0] == capability[0] and compiled[1] <= capability[1]) or (
                bool(ptx) and compiled <= capability
            )
        if runs:
            return None
    built = ", ".join("sm_" + architecture.replace(".", "") for architecture in architectures)
    major, minor = capability
    return f"it was built for {built}; this device is sm_{major}{minor}: reinstall with TORCH_CUDA_ARCH_LIST={major}.{minor}."


@functools.cache
def gpu_reason(index: int) -> str | None:
    """Why the compiled kernels do not run on a GPU; None if they do. Queried once, because it is needed at every call."""
    architectures = _BUILD.get("_cuda", {}).get("architectures", [])
    return _gpu_mismatch(architectures, torch.cuda.get_device_capability(index)) if architectures else None


def backend_info() -> dict:
    """The installed kernels and their versions, as plain data.

    Returns:
        A dict with the keys ``torch`` and ``torch_built_with`` (versions now and at build time), ``cpu`` and ``cuda``. The last
        two are dicts with ``available`` (bool; for CUDA on the current GPU, if there is one) and ``reason`` (why it is not, else
        None); ``cpu`` also has ``instruction_set`` (what the kernel uses on this processor), ``cuda`` has ``toolkit`` (nvcc's
        version) and ``architectures`` (what was compiled, for example ``["8.0", "9.0+PTX"]``).
    """
    cuda = _BUILD.get("_cuda", {})
    cuda_reason = reasons["cuda"]
    if cuda_reason is None and torch.cuda.is_available():
        cuda_reason = gpu_reason(torch.cuda.current_device())
    cpu_reason = reasons["cpu"]
    return {
        "torch": torch.__version__,
        "torch_built_with": _BUILD.get("torch"),
        "cpu": {
            "available": cpu_reason is None,
            "reason": cpu_reason,
            "instruction_set": torch.ops.pspl_cuda.cpu_instruction_set() if cpu_reason is None else None,
        },
        "cuda": {
            "available": cuda_reason is None,
            "reason": cuda_reason,
            "toolkit": cuda.get("toolkit"),
            "architectures": cuda.get("architectures", []),
        },
    }
