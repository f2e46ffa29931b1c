"""Compiles csrc/cuda with g++ into folders below tests/cuda/emulation/build. ninja rebuilds what has changed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
BUILD = HERE / "build"

# The device computes a * b + c in one rounding wherever the compiler sees it: -march=native gives g++ the instruction, if
# there is one. What may be uninitialised is not for the compiler to guess: shared memory is poisoned.
FLAGS = (
    "-std=c++20 -g1 -march=native -ffp-contract=fast -fPIC "
    "-Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-maybe-uninitialized -Wno-missing-field-initializers"
)


class UnavailableError(ImportError):
    """Something that the emulation is built with is missing."""


class BuildError(ImportError):
    """The sources do not compile."""


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(f"there is no {name}")
    return path


def _ninja() -> str:
    try:
        import ninja
    except ImportError:
        return _tool("ninja")
    return str(Path(ninja.BIN_DIR) / "ninja")


def build(target: str, sources: list[Path], *, flags: str, folder: Path, csrc: Path = CSRC) -> Path:
    """Compile ``sources`` with the kernels in ``csrc`` and link them to ``folder / target``, a shared library if it ends in .so.

    Prints a line if there is something to do, because it takes a while. Raises UnavailableError or BuildError.
    """
    if sys.platform != "linux":
        raise UnavailableError("the emulation is built on Linux only")
    gxx = _tool("g++")
    includes = f"-include {HERE}/cuda_shim.h -isystem {HERE}/toolkit -I {csrc}"
    objects = [f"{source.stem}.o" for source in sources]
    lines = [
        "rule compile",
        f"  command = {gxx} {FLAGS} {flags} {includes} -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {gxx} {flags} {'-shared' if target.endswith('.so') else ''} $in -o $out",
        *(f"build {out}: compile {source}" for out, source in zip(objects, sources, strict=True)),
        f"build {target}: link {' '.join(objects)}",
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    # Several pytest runs may want it at once.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join(lines))
        command = [_ninja(), "-C", str(folder)]
        if "no work to do" in subprocess.run([*command, "-n"], capture_output=True, text=True).stdout:
            return folder / target
        print(f"compiling the CUDA kernels for the CPU in {folder} ...", file=sys.stderr, flush=True)
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"the CUDA sources do not compile with g++:\n{result.stdout[-6000:]}")
    return folder / target


def module() -> Path:
    """The Python module: all kernels on the machine of fibers."""
    try:
        import pybind11
    except ImportError:
        raise UnavailableError("there is no pybind11") from None
    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_path('include')}"
    sources = [HERE / "bindings.cpp", HERE / "fibers.cpp", *sorted((CSRC / "cuda").rglob("*.cu"))]
    target = f"emulated_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder = BUILD / str(sys.implementation.cache_tag)  # Pythons differ in headers and suffix
    return build(target, sources, flags=f"-O2 -fvisibility=hidden {python}", folder=folder)


SANITIZERS = {
    "none": ("fibers.cpp", "-O1"),
    # The machine of fibers, and every way to leave an array or the language.
    "memory": ("fibers.cpp", "-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"),
    # The machine of threads.
    "races": ("threads.cpp", "-O1 -DPSPL_MACHINE_OF_THREADS -fsanitize=thread"),
}


def driver(
    sanitizer: str, *, folder: Path, csrc: Path = CSRC, float32_only: bool = False, architecture: int = 90
) -> Path:
    """driver.cpp with the kernels in ``csrc``, as compiled for an architecture, under one of SANITIZERS."""
    machine, flags = SANITIZERS[sanitizer]
    flags += f" -DPSPL_EMULATED_ARCHITECTURE={architecture}"
    sources = sorted((csrc / "cuda").rglob("*.cu"))
    if float32_only:
        sources = [source for source in sources if source.stem in ("forward", "backward", "float32")]
        flags += " -DPSPL_FLOAT32_ONLY"
    sources += [HERE / "driver.cpp", HERE / machine]
    return build("driver", sources, flags=flags, folder=folder, csrc=csrc)
