"""Compiles csrc/cuda with g++ (helpers/compiled.py keeps the results)."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from helpers import compiled

HERE = Path(__file__).resolve().parent
# A test emulates other sources, in a process of its own.
CSRC = Path(os.environ.get("PSPL_EMULATED_CSRC") or HERE.parents[2] / "csrc")

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


def build(
    sources: list[Path], flags: str, *, csrc: Path = CSRC, system_dirs: tuple[str, ...] = (), suffix: str = ""
) -> Path:
    """Compile ``sources`` with the kernels in ``csrc`` and link them: a shared library if there is a ``suffix``.

    Raises UnavailableError or BuildError.
    """
    if sys.platform != "linux":
        raise UnavailableError("the emulation is built on Linux only")
    gxx = [_tool("g++")]
    try:
        objects = compiled.compile_sources(
            gxx,
            [*FLAGS.split(), *flags.split()],
            sources,
            include_dirs=[csrc],
            system_dirs=[HERE / "toolkit", *map(Path, system_dirs)],
            first=[HERE / "cuda_shim.h"],
        )
        return compiled.link(gxx, [*flags.split(), *(["-shared"] if suffix else [])], objects.values(), suffix)
    except compiled.CompileError as error:
        raise BuildError(f"the CUDA sources do not compile with g++:\n{error}") from None


def module() -> Path:
    """The Python module: all kernels on the machine of fibers."""
    try:
        import pybind11
    except ImportError:
        raise UnavailableError("there is no pybind11") from None
    sources = [HERE / "bindings.cpp", HERE / "fibers.cpp", *sorted((CSRC / "cuda").rglob("*.cu"))]
    return build(
        sources,
        "-O2",  # symbols stay visible: set_driver() of bindings.cpp asks for the names of the kernels
        system_dirs=(pybind11.get_include(), sysconfig.get_path("include")),
        suffix=sysconfig.get_config_var("EXT_SUFFIX"),
    )


SANITIZERS = {
    "none": ("fibers.cpp", "-O1"),
    # The machine of fibers, and every way to leave an array or the language.
    "memory": ("fibers.cpp", "-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"),
    # The machine of threads.
    "races": ("threads.cpp", "-O1 -DPSPL_MACHINE_OF_THREADS -fsanitize=thread"),
}


def driver(sanitizer: str, *, csrc: Path = CSRC, float32_only: bool = False) -> Path:
    """driver.cpp with the kernels in ``csrc`` under one of SANITIZERS."""
    machine, flags = SANITIZERS[sanitizer]
    sources = sorted((csrc / "cuda").rglob("*.cu"))
    if float32_only:
        sources = [source for source in sources if source.stem in ("forward", "backward", "float32")]
        flags += " -DPSPL_FLOAT32_ONLY"
    return build([*sources, HERE / "driver.cpp", HERE / machine], flags, csrc=csrc)
