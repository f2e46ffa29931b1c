"""Every header of csrc parses by itself: it includes what it uses and opens its own namespace, so editors, clangd and clang-tidy
understand it. Device-only code is in one file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from pspl_cuda.config import CONSTANTS
from tools import cuda_resources

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").exists())
CSRC = ROOT / "csrc"

SHARED = sorted(CSRC.glob("pspl_*.h"))
CPU = sorted(CSRC.glob("cpu/*.h"))
CUDA = sorted([*CSRC.glob("cuda/*.h"), *CSRC.glob("cuda/*.cuh")])
PRIMITIVES = CSRC / "cuda" / "primitives.cuh"
EMULATION = ROOT / "tests" / "cuda" / "emulation"
pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="needs the source tree")

INSTRUCTION_SETS = {
    "baseline": (16, []),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "avx512": (64, ["-mavx512dq", "-mavx512vl"]),
}


def parse(header: Path, *flags: str, compiler: str = "g++") -> subprocess.CompletedProcess:
    """Compile a file that holds nothing but the inclusion of ``header``."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    return subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", *flags, "-fsyntax-only", "-x", "c++", "-"],
        input=f'#include "{header}"\n',
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("header", SHARED, ids=lambda header: header.name)
def test_shared_header_parses_alone(header):
    """Standard C++17: every compiler that builds the CUDA library must accept these headers."""
    result = parse(header, "-pedantic-errors")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("header", CPU, ids=lambda header: header.name)
def test_cpu_header_parses_alone(header, isa):
    vector_bytes, flags = INSTRUCTION_SETS[isa]
    result = parse(header, *flags, f"-DPSPL_ISA={isa}", f"-DPSPL_VECTOR_BYTES={vector_bytes}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("header", CPU, ids=lambda header: header.name)
def test_cpu_header_needs_no_macros(header):
    result = parse(header)
    assert result.returncode == 0, result.stderr


# The emulation's declarations of CUDA.
SHIM = ("-include", f"{EMULATION}/cuda_shim.h", "-isystem", f"{EMULATION}/toolkit")
CUDA_FLAGS = ("-std=c++20", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers", *SHIM)


def parse_cuda(header: Path) -> subprocess.CompletedProcess:
    return parse(header, "-pedantic-errors", *CUDA_FLAGS)


@pytest.mark.parametrize("header", CUDA, ids=lambda header: header.name)
def test_cuda_header_parses_alone(header):
    result = parse_cuda(header)
    assert result.returncode == 0, result.stderr


def check_standard(compiler: str, flags: list, files: list[Path]) -> None:
    """``files`` are standard C++20. cl.exe accepts nothing else, and builds all but csrc/cpu."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-fsyntax-only"]
    result = subprocess.run([*command, *flags, "-x", "c++", *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


COMPILERS = ["g++", "clang++"]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_kernels_are_standard_cpp(compiler):
    check_standard(compiler, ["-I", CSRC, *CUDA_FLAGS], sorted(CSRC.rglob("cuda/**/*.cu")))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ["ops_cpu.cpp", "ops_cuda.cpp"])
def test_bindings_are_standard_cpp(compiler, name):
    flags = [part for folder in include_paths() for part in ("-isystem", folder)]
    if name == "ops_cuda.cpp":
        # nvcc may be a wrapper outside its toolkit.
        homes = [
            *Path("/usr/local").glob("cuda*"),
            *Path(cuda_resources.find_tool("nvcc") or "").resolve().parents[1:2],
        ]
        headers = [home / "include" for home in homes if (home / "include" / "cuda_runtime_api.h").exists()]
        if not headers:
            pytest.skip("there is no CUDA toolkit")
        flags += ["-isystem", headers[0], "-DUSE_CUDA"]
    check_standard(compiler, flags, [CSRC / "bindings" / name])


def test_an_extension_of_a_compiler_is_found(tmp_path):
    (tmp_path / "extended.cpp").write_text("int sum(int n) { int values[n]; return sizeof(values); }")
    with pytest.raises(AssertionError, match=r"variable.length"):
        check_standard("g++", [], [tmp_path / "extended.cpp"])


def test_a_cuda_header_that_lacks_an_include_is_found(tmp_path):
    for folder in ("cuda", "."):
        for file in [*(CSRC / folder).glob("*.h"), *(CSRC / folder).glob("*.cuh")]:
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / folder)
    header = tmp_path / "cuda" / "reduction.cuh"
    header.write_text(header.read_text().replace('#include "primitives.cuh"\n', ""))
    assert "warp_sum" in parse_cuda(header).stderr


def device_code(text: str) -> list[str]:
    """The inline assembly and the architecture tests of a C++ file."""
    without_comments = re.sub(r"//.*|/\*.*?\*/", "", text)
    return re.findall(r"\b(?:__)?asm(?:__)?\b|\b__CUDA_ARCH\w*", without_comments)


def test_device_code_is_in_one_file():
    """Another architecture needs changes in primitives.cuh only."""
    files = [file for file in CSRC.rglob("*") if file.suffix in (".h", ".cuh", ".cu", ".cpp")]
    assert [file.name for file in files if device_code(file.read_text())] == [PRIMITIVES.name]


@pytest.mark.parametrize("planted", ['asm volatile("bar.sync 0;");', '__asm__("");', "#if __CUDA_ARCH__ >= 900"])
def test_device_code_is_found(planted):
    assert device_code(f"// no asm here\nvoid f() {{\n{planted}\n}}")
    assert not device_code(f"// {planted}")


def test_a_header_that_lacks_an_include_is_found(tmp_path):
    header = tmp_path / "tiling.h"
    text = (CSRC / "cpu" / "tiling.h").read_text()
    without = text.replace('#include "../pspl_math.h"\n', "").replace('#include "../pspl_params.h"\n', "")
    header.write_text(without.replace('"instruction', f'"{CSRC}/cpu/instruction'))
    assert header.read_text() != text
    assert "ForwardParams" in parse(header).stderr


@pytest.mark.deep
@pytest.mark.parametrize("file", [*SHARED, *CPU, *sorted(CSRC.glob("cpu/*.cpp"))], ids=lambda file: file.name)
def test_clang_tidy(file):
    """The checks of .clang-tidy. Among them: each file includes exactly what it uses."""
    beside_python = Path(sys.executable).with_name("clang-tidy")
    clang_tidy = beside_python if beside_python.exists() else shutil.which("clang-tidy")
    if clang_tidy is None:
        pytest.skip("clang-tidy is not installed")
    result = subprocess.run(
        [clang_tidy, "--quiet", f"--config-file={ROOT / '.clang-tidy'}", file, "--", "-x", "c++", "-std=c++17"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_constants_have_one_order():
    """Operators take them as a list without names."""
    (fields,) = re.findall(r"struct Constants {\s*double (.*?);\s*};", (CSRC / "pspl_params.h").read_text(), re.DOTALL)
    assert re.split(r",\s*", fields) == list(CONSTANTS)
