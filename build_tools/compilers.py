"""Finds a C++ compiler and a CUDA toolkit that compile a small trial program; otherwise gives the reason in words."""

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

WINDOWS = os.name == "nt"
# C++20, linked as a library.
CXX_TRIAL = """
#include <algorithm>
#include <span>
template <typename T>
concept Number = requires(T a) { a + a; };
float sum(std::span<const float> values) {
  float total = 0;
  std::for_each(values.begin(), values.end(), [&](Number auto value) { total += value; });
  return total;
}
"""
# The vector extensions of g++ and clang, which csrc/cpu/simd.h needs.
VECTOR_TRIAL = """
typedef float Vector __attribute__((vector_size(16)));
float sum(Vector a, float b) { return (a + b)[0]; }
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


# Programs that call the compiler after them: CXX="ccache g++".
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")
# Options that change the results of IEEE arithmetic, of g++, clang and nvcc. Linking with some of them makes the library set the
# processor to flush subnormal numbers, for the whole process.
INEXACT = re.compile(
    r"-Ofast|-f(fast-math|unsafe-math-optimizations|associative-math|reciprocal-math|finite-math-only|no-signed-zeros"
    r"|single-precision-constant|denormal-fp-math=.*|fp-model=(fast|aggressive))|-mdaz-ftz"
    r"|--?use_fast_math|--?ftz=true|--?prec-(div|sqrt)=false"
)
FLAGS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "LDCXXSHARED")
NVCC_FLAGS = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")


def clean_environment() -> list[str]:
    """Take from the variables of compilers what can't serve here, and return what was changed in words.

    An empty variable is one that is not set.
    """
    changes = []
    for name in (*FLAGS, *NVCC_FLAGS):
        words = os.environ.get(name, "").split()
        kept = [word for word in words if not INEXACT.fullmatch(word)]
        if kept != words:
            left_out = " ".join(word for word in words if word not in kept)
            changes.append(f"{name}: {left_out} is left out, because it changes the results of arithmetic")
            os.environ[name] = " ".join(kept)
        if not kept:
            os.environ.pop(name, None)
    return changes


def program_and_options(name: str, default: str = "") -> tuple[str | None, list[str]]:
    """What the variable CXX or CC says, without a launcher. torch and nvcc take the whole value as the name of a program."""
    words = [word for word in shlex.split(os.environ.get(name) or default) if Path(word).stem not in LAUNCHERS]
    return (words[0], words[1:]) if words else (None, [])


def cxx_compiler() -> list[str]:
    program, options = program_and_options("CXX", "cl" if WINDOWS else "c++")
    return [str(program), *options]


def _nvcc_options() -> list[str]:
    """The options of CC, which is nvcc's host compiler."""
    return [part for option in program_and_options("CC")[1] for part in ("-Xcompiler", option)]


def compile_flags(windows: bool = WINDOWS) -> dict[str, list[str]]:
    """Flags for the C++ compiler and for nvcc, in addition to torch's, which include the C++ standard."""
    if windows:
        standard = ["/permissive-", "/Zc:__cplusplus"]
        return {
            "cxx": ["/O2", *standard],
            "nvcc": ["-O3", *(part for flag in standard for part in ("-Xcompiler", flag))],
        }
    # The two math flags change no value, but g++ needs them to vectorise some loops.
    math = ["-fno-math-errno", "-fno-trapping-math"]
    return {
        "cxx": [*cxx_compiler()[1:], "-O3", "-g0", "-fvisibility=hidden", *math],
        "nvcc": [*_nvcc_options(), "-O3"],
    }


def _try_cxx(source: str, windows: bool) -> str | None:
    options = ["/nologo", "/std:c++20", "/LD"] if windows else ["-std=c++20", "-fPIC", "-shared", "-o", "trial.so"]
    return _compile("trial.cpp", source, [*cxx_compiler(), *options])


def why_no_cxx(windows: bool = WINDOWS) -> str | None:
    """None if the C++ compiler can build a library, else the reason."""
    compiler = cxx_compiler()
    if shutil.which(compiler[0]) is None:
        return (
            f"no C++ compiler was found ({compiler[0]} does not exist): install g++ 11 or clang 14 or later, or set CXX, and "
            "reinstall"
        )
    error = _try_cxx(CXX_TRIAL, windows)
    if error is None:
        return None
    return (
        f"the C++ compiler {' '.join(compiler)} can't compile a small C++20 program ({error}): the kernels need g++ 11 or clang "
        "14 or later; set CXX to one and reinstall"
    )


def why_no_vectors(windows: bool = WINDOWS) -> str | None:
    """None if the C++ compiler has what the CPU kernels need in addition, else the reason."""
    error = _try_cxx(VECTOR_TRIAL, windows)
    if error is None:
        return None
    return (
        f"the C++ compiler {' '.join(cxx_compiler())} lacks the vector types of g++ and clang ({error}): the CPU kernels need "
        "g++ 11 or clang 14 or later; set CXX to one and reinstall"
    )


def find_toolkit(cuda: str) -> tuple[Toolkit | None, str | None]:
    """A CUDA toolkit for a torch of CUDA version ``cuda``: (toolkit, None), or (None, the reason).

    It may be newer than torch's, because the kernels contain their own runtime; they then need a driver as new as the toolkit. An
    explicit CUDA_HOME or CUDA_PATH takes precedence. Otherwise that of the nvcc on the PATH, /usr/local/cuda, or that of PyPI's
    packages, which the backend adds to an isolated build: of those that work the first of torch's major version, or the oldest.
    """
    major = cuda.split(".")[0]
    if requested_home():
        homes = [Path(requested_home())]
        if shutil.which("nvcc", path=str(homes[0] / "bin")) is None:
            return None, f"CUDA_HOME is {homes[0]}, which has no bin/nvcc: {_remedy(major)}"
    else:
        on_path = shutil.which("nvcc")
        homes = [Path(on_path).parent.parent] if on_path else []
        packages = f"nvidia/cu{pypi_toolkit(cuda).split('.')[0]}"
        homes += [Path("/usr/local/cuda"), *(Path(folder, packages) for folder in sys.path)]
    usable, reasons = [], []
    for home in homes:
        if shutil.which("nvcc", path=str(home / "bin")):
            try:
                usable.append(_examine(home, cuda))
            except _UnusableError as error:
                reasons.append(str(error))
    if usable:
        return min(usable, key=lambda toolkit: _major(toolkit.version)), None
    return None, reasons[0] if reasons else f"no CUDA toolkit was found: {_remedy(major)}"


def requested_home() -> str | None:
    """The CUDA toolkit named by the environment."""
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")


def pypi_has_nvcc() -> bool:
    return sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


def pypi_toolkit(cuda: str) -> str:
    """The version of PyPI's toolkit for a torch of CUDA version ``cuda``: PyPI has no nvcc before 13.0."""
    return cuda if _major(cuda) >= 13 else "13.0"


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _remedy(major: str) -> str:
    remedy = f"install a CUDA {major} toolkit, set CUDA_HOME to it, and reinstall"
    if pypi_has_nvcc():
        newer = f" {pypi_toolkit(major)}" if _major(major) < 13 else ""
        driver = ", whose kernels need an NVIDIA driver for CUDA 13" if newer else ""
        remedy += f"; or install with pip and without --no-build-isolation, which takes nvcc{newer} from PyPI{driver}"
    return remedy


class _UnusableError(Exception):
    """Says why a toolkit can't be used."""


def _examine(home: Path, cuda: str) -> Toolkit:
    nvcc = str(home / "bin" / "nvcc")
    major = cuda.split(".")[0]
    try:
        # A dry run prints the toolkit's own folders: nvcc may be a wrapper, a link, or conda's.
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        dryrun = _run(command, check=True).stderr
        printed = _run([nvcc, "--version"], check=True).stdout
        codes = _run([nvcc, "--list-gpu-code"], check=True).stdout
        version = re.search(r"release (\d+\.\d+)", printed).group(1)
    except (OSError, subprocess.CalledProcessError, AttributeError) as error:
        raise _UnusableError(f"{nvcc} does not run or print its version ({error}): {_remedy(major)}") from None
    if _major(version) < int(major):
        unset = ", or unset CUDA_HOME" if requested_home() else ""
        raise _UnusableError(f"nvcc is of CUDA {version} and torch of CUDA {cuda}: {_remedy(major)}{unset}")
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    if top and not (home / "include" / "cuda_runtime_api.h").exists():
        home = Path(os.path.normpath(top.group(1).strip()))
    program, _ = program_and_options("CC")
    host = ["-ccbin", program, *_nvcc_options()] if program else []
    error = _compile("trial.cu", CUDA_TRIAL, [nvcc, *host, "-std=c++20", "-c", "-o", "trial.o"])
    if error is not None:
        raise _UnusableError(
            f"nvcc {version} of {home} can't compile a small kernel ({error}): set CC to a compiler that it supports, or "
            f"CUDA_HOME to another CUDA {major} toolkit, and reinstall"
        )
    architectures = [f"{tens}.{ones}" for tens, ones in re.findall(r"sm_(\d+)(\d)\b", codes)]
    include_dirs = _folders(dryrun, "INCLUDES", "-I")
    # PyPI's nvcc prints lib64, but its libraries are in lib.
    library_dirs = [*_folders(dryrun, "LIBRARIES", "-L"), str(home / "lib")]
    return Toolkit(str(home), version, architectures, include_dirs, library_dirs)


def _folders(dryrun: str, variable: str, flag: str) -> list[str]:
    """The folders in a variable of the dry run: INCLUDES="-I/usr/local/cuda/bin/../include"."""
    line = re.search(rf"^#\$ {variable}=(.+)$", dryrun, re.MULTILINE)
    return [os.path.normpath(found) for found in re.findall(rf'{flag}([^"\s]+)', line.group(1) if line else "")]


def _run(command: list[str], check: bool = False, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program, whose messages may be in any encoding."""
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", errors="replace", check=check)


def _compile(name: str, source: str, command: list[str]) -> str | None:
    """None if ``command`` compiles the source, else the most telling line of its output."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(source)
        try:
            result = _run([*command, name], cwd=folder)
        except OSError as error:
            return str(error)
    if result.returncode == 0:
        return None
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if re.search(r"error|fatal|killed", line, re.IGNORECASE)), lines[-1])
