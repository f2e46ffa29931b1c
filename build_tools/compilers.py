"""Trials of the C++ compiler and of the CUDA toolkits of this machine: each usable, or a reason in words.

A trial is a program of a few lines. What passes it is expected to compile the kernels.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# C++20 and the vector extensions of g++ and clang (csrc/cpu/vec.h), linked as a library.
CXX_TRIAL = """
#include <algorithm>
#include <span>
typedef float Vector __attribute__((vector_size(16)));
template <typename T>
concept Number = requires(T a) { a + a; };
extern "C" float sum(std::span<const float> values) {
  Vector total{};
  std::for_each(values.begin(), values.end(), [&](Number auto value) { total += value; });
  return total[0];
}
"""
CUDA_TRIAL = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__global__ void kernel(__half* half, __nv_bfloat16* bfloat) { *half = __float2half(__bfloat162float(*bfloat)); }
"""


class Toolkit(NamedTuple):
    home: str
    version: str  # nvcc's: "13.0"
    architectures: list[str]  # that it compiles for: ["7.5", ...]
    include_dirs: list[str]
    library_dirs: list[str]


def cxx_compiler() -> list[str]:
    """The command that torch's build uses."""
    return shlex.split(os.environ.get("CXX", "cl" if os.name == "nt" else "c++"))


def why_no_cxx() -> str | None:
    """None if the C++ compiler can build the kernels, else the reason."""
    compiler = cxx_compiler()
    if shutil.which(compiler[0]) is None:
        return (
            f"no C++ compiler was found ({compiler[0]} does not exist): install g++ 11 or clang 14 or later, or set CXX, and "
            "reinstall"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cpp"
        source.write_text(CXX_TRIAL)
        flags = ["-std=c++20", "-fPIC", "-shared", "-o", str(source.with_suffix(".so"))]
        error = _run([*compiler, str(source), *flags], folder)
    if error is None:
        return None
    return (
        f"the C++ compiler {' '.join(compiler)} fails on a program of a few lines ({error}): the kernels need g++ 11 or clang 14 "
        "or later; set CXX to one and reinstall"
    )


def find_toolkit(cuda: str) -> tuple[Toolkit | None, str | None]:
    """A CUDA toolkit for a torch of CUDA version ``cuda``: (it, None), or (None, why there is none).

    An order (CUDA_HOME, CUDA_PATH) is followed. Else the first that will do: nvcc's of the PATH, /usr/local/cuda, or that of
    PyPI's packages, as the backend puts it into an isolated build.
    """
    major = cuda.split(".")[0]
    ordered = ordered_home()
    if ordered:
        homes = [Path(ordered)]
        if shutil.which("nvcc", path=str(homes[0] / "bin")) is None:
            return None, f"CUDA_HOME is {ordered}, which holds no bin/nvcc: {_remedy(major)}"
    else:
        on_path = shutil.which("nvcc")
        homes = [Path(on_path).parent.parent] if on_path else []
        homes += [Path("/usr/local/cuda"), *(Path(folder) / "nvidia" / f"cu{major}" for folder in sys.path)]
        homes = [home for home in homes if shutil.which("nvcc", path=str(home / "bin"))]
    first_reason = None
    for home in homes:
        toolkit, reason = _examine(home, cuda, is_order=bool(ordered))
        if toolkit is not None:
            return toolkit, None
        first_reason = first_reason or reason
    return None, first_reason or f"no CUDA toolkit was found: {_remedy(major)}"


def ordered_home() -> str | None:
    """The CUDA toolkit that the caller names."""
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")


def comes_from_pypi(cuda: str) -> bool:
    """True if PyPI has an nvcc for a torch of that CUDA version; its packages for CUDA 12 hold none."""
    return int(cuda.split(".")[0]) >= 13 and sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


def _remedy(major: str) -> str:
    remedy = f"install a CUDA {major} toolkit, set CUDA_HOME to it, and reinstall"
    return (
        f"{remedy}; or install without --no-build-isolation, and nvcc comes from PyPI"
        if comes_from_pypi(major)
        else remedy
    )


def _examine(home: Path, cuda: str, is_order: bool) -> tuple[Toolkit | None, str | None]:
    nvcc = str(home / "bin" / "nvcc")
    major = cuda.split(".")[0]
    try:
        # A dry run names the toolkit's own folders: nvcc may be a wrapper, a link, or conda's.
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        dryrun = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        codes = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"{nvcc} does not run ({error}): {_remedy(major)}"
    version = re.search(r"release (\d+\.\d+)", told)
    if version is None:
        return None, f"{nvcc} does not tell its version: {_remedy(major)}"
    if version.group(1).split(".")[0] != major:
        unset = ", or unset it" if is_order else ""
        return None, f"nvcc is of CUDA {version.group(1)} and torch of CUDA {cuda}{unset}: {_remedy(major)}"
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    if top and not (home / "include" / "cuda_runtime_api.h").exists():
        home = Path(os.path.normpath(top.group(1).strip()))
    include_dirs = _folders(dryrun, "INCLUDES", "-I")
    # PyPI's nvcc names lib64, but its libraries are in lib.
    library_dirs = [*_folders(dryrun, "LIBRARIES", "-L"), str(home / "lib")]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text(CUDA_TRIAL)
        host = ["-ccbin", os.environ["CC"]] if os.environ.get("CC") else []
        error = _run([nvcc, *host, "-std=c++20", "-c", str(source), "-o", str(source.with_suffix(".o"))], folder)
    if error is not None:
        return None, (
            f"nvcc {version.group(1)} of {home} fails on a kernel of one line ({error}): set CC to a compiler that it "
            f"supports, or CUDA_HOME to another CUDA {major} toolkit, and reinstall"
        )
    numbers = re.findall(r"sm_(\d+)(\d)\b", codes)
    architectures = [f"{tens}.{ones}" for tens, ones in numbers]
    return Toolkit(str(home), version.group(1), architectures, include_dirs, library_dirs), None


def _folders(dryrun: str, variable: str, flag: str) -> list[str]:
    """The folders that a dry run's variable names: INCLUDES="-I/usr/local/cuda/bin/../include"."""
    told = re.search(rf"^#\$ {variable}=(.+)$", dryrun, re.MULTILINE)
    return [os.path.normpath(found) for found in re.findall(rf'{flag}([^"\s]+)', told.group(1) if told else "")]


def _run(command: list[str], folder: str) -> str | None:
    """None if the command passes, else the line that tells most of why not."""
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if result.returncode == 0:
        return None
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    return next(
        (line for line in lines if re.search(r"error|fatal|killed", line, re.IGNORECASE)), (lines or ["no message"])[-1]
    )
