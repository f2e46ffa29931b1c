"""Every header of csrc parses by itself: it includes what it uses and opens its own namespace, so editors, clangd and clang-tidy
understand it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.py").exists())
CSRC = ROOT / "csrc"

SHARED = sorted(CSRC.glob("pspl_*.h"))
CPU = sorted(CSRC.glob("cpu/*.h"))
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


def test_a_header_that_lacks_an_include_is_found(tmp_path):
    header = tmp_path / "tiling.h"
    text = (CSRC / "cpu" / "tiling.h").read_text()
    header.write_text(
        text.replace('#include "../pspl_params.h"\n', "").replace('"instruction', f'"{CSRC}/cpu/instruction')
    )
    assert header.read_text() != text
    assert "ForwardParams" in parse(header).stderr


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
