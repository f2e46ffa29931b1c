"""The sources of the CPU kernel without torch (driver.cpp): memory errors, other compilers, instruction sets and
processors. The tests of all backends check its results."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import backends, compiled

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
DRIVER = HERE / "driver.cpp"

X86 = "x86_64"
pytestmark = [
    pytest.mark.deep,
    pytest.mark.xdist_group("cpu_kernel"),  # one run of the sanitized driver serves most tests
    pytest.mark.skipif(platform.machine() != X86, reason="the instruction sets are those of x86-64"),
    pytest.mark.skipif(not (CSRC.exists() and (ROOT / "setup.py").exists()), reason="needs the source tree"),
]

WARNINGS = "-std=c++17 -Wall -Wextra -Werror"
# As setup.py has it: what the flags make of the code is what is tested.
OPTIMISED = "-O3 -fno-math-errno -fno-trapping-math"
# Calls for the checks instead of inlined ones, and no optimisation: a third of the time to compile.
SANITIZED = (
    "-O0 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all "
    "--param asan-instrumentation-with-call-threshold=0"
)
# Fresh memory is NaN: what is read before it was written shows.
ENVIRONMENT = {"ASAN_OPTIONS": "max_malloc_fill_size=1073741824:malloc_fill_byte=255"}


def _instruction_sets() -> dict[str, list[str]]:
    """Flags by source file, as setup.py has them."""
    found = re.search(r"^INSTRUCTION_SETS = (\{.*?^\})", (ROOT / "setup.py").read_text(), re.MULTILINE | re.DOTALL)
    return ast.literal_eval(found.group(1))


ISAS = ("baseline", "avx2", "avx512")


def _compiler(name: str, zig_target: str = "") -> list[str]:
    """A compiler on the PATH; or the clang in PyPI's ziglang, for ``zig_target``."""
    if shutil.which(name):
        return [name]
    if zig_target and importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", zig_target]
    return pytest.skip(f"there is no {name}" + (" and no ziglang" if zig_target else ""))


def _run(command: list, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=500,
    )


def _build(compiler: list[str], flags: str, planted: Path | None = None) -> Path:
    """The driver with all kernels, or with the baseline kernel in the file ``planted``."""
    own_flags = {Path(name).name: own for name, own in _instruction_sets().items()}
    if any("aarch64" in part for part in compiler):
        own_flags, flags = {}, f"{flags} -static"

    def objects(sources: list[Path], csrc: Path) -> dict[str, Path]:
        command = [*WARNINGS.split(), *flags.split()]
        return compiled.compile_sources(compiler, command, sources, include_dirs=[csrc], own_flags=own_flags)

    found = objects([*sorted((CSRC / "cpu").glob("*.cpp")), DRIVER], CSRC)
    if planted:
        found |= objects([planted], planted.parents[1])
    return compiled.link(compiler, flags.split(), found.values())


def _drive(program: Path, isa: str, dump: Path | None = None, prefix: tuple = ()) -> subprocess.CompletedProcess:
    """One run; skips where the processor has not got the instruction set."""
    result = _run([*prefix, program, *([dump] if dump else [])], PSPL_CPU_ISA=isa, **ENVIRONMENT)
    chosen = result.stdout.split()
    if result.returncode == 0 and chosen[0] != isa:
        pytest.skip(f"this processor has no {isa}, but {chosen[0]}")
    return result


# Two maps M_s, each within 2e-5 of the exact one, are at most 4e-5 apart. M_a = 2 exp(-(M_s + 1)^2) changes by at most
# 2 sqrt(2 / e) = 1.72 times that; the residual of l2 is 2 M_a^2 d, with M_a <= 2 and |d| < 1: 8 times as much as M_a at most.
APART = 8 * 1.72 * 4e-5


def _agree(dump: Path, other: Path) -> None:
    actual, expected = np.fromfile(dump), np.fromfile(other)
    assert actual.size > 10**6
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=APART)


# ---------------------------------------------------------------- sanitizers


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    """The driver under AddressSanitizer and UBSan, all instruction sets."""
    folder = tmp_path_factory.mktemp("sanitized")
    nothing = folder / "nothing.cpp"
    nothing.write_text("int main() {}")
    trial = _run([*_compiler("g++"), "-fsanitize=address,undefined", nothing, "-o", folder / "nothing"])
    if trial.returncode != 0 or _run([folder / "nothing"]).returncode != 0:
        pytest.skip("programs with -fsanitize=address,undefined do not compile or run here")
    return _build(_compiler("g++"), SANITIZED)


@pytest.fixture(scope="module")
def outputs(sanitized, tmp_path_factory):
    """All outputs of the driver by instruction set, of one run for all tests."""
    folder = tmp_path_factory.mktemp("outputs")

    def of(isa: str) -> Path:
        dump = folder / isa
        if not dump.exists():
            result = _drive(sanitized, isa, dump)
            assert result.returncode == 0, result.stderr
            assert result.stdout.endswith(" cases\n")
        return dump

    return of


@pytest.mark.parametrize("isa", ISAS)
def test_sanitizers_find_nothing(outputs, isa):
    """Every dtype, layout, window, padding, distance and output, around the ends of vectors, strips and bands: each byte that
    is read or written belongs to an image, and each pixel of an output is written, and nothing else. The instruction sets
    agree."""
    _agree(outputs(isa), outputs("baseline"))


# name: file, what stands there, what the bug makes of it, what the driver or the sanitizer says
PLANTS = {
    "last vector of a row one column too far": (
        "rows.h",
        "combine_vector(last - kLanes<T>);",
        "combine_vector(last - kLanes<T> + 1);",
        "ERROR: AddressSanitizer",
    ),
    "one row too few in the ring": (
        "forward_kernel.h",
        "ring(2 * radius + 2)",
        "ring(2 * radius + 1)",
        "ERROR: AddressSanitizer",
    ),
    "backward pass over whole chunks only": (
        "backward_kernel.h",
        "p.numel - begin < kBackwardChunk ? p.numel - begin : kBackwardChunk",
        "kBackwardChunk",
        "ERROR: AddressSanitizer",
    ),
    "last column not stored": (
        "row_outputs.h",
        "for (int i = 0; i < columns; ++i) to[i] =",
        "for (int i = 0; i < columns - 1; ++i) to[i] =",
        "gradient is not a number",
    ),
    "zero padding never set to zero": (
        "forward_kernel.h",
        "i < 4 * line_vectors(); ++i) lines",
        "i < 0; ++i) lines",
        "is not a number",
    ),
    "stored between the pixels": (
        "row_outputs.h",
        "to[i * stride] = narrow",
        "to[i * stride] = to[i * stride + (i + 1 < columns)] = narrow",
        "was written between its pixels",
    ),
    "loads that need an aligned address": (
        "simd.h",
        "vector_size(kBytes), aligned(alignof(E)), may_alias",
        "vector_size(kBytes), may_alias",
        "misaligned address",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_bugs_are_found(sanitized, plant, tmp_path):
    """The driver and the sanitizers, shown what they are for, in the baseline kernel."""
    file, before, after, complaint = PLANTS[plant]
    shutil.copytree(CSRC, tmp_path / "csrc")
    planted = tmp_path / "csrc" / "cpu" / file
    assert planted.read_text().count(before) == 1, f"{file} has changed: plant this bug in another way"
    planted.write_text(planted.read_text().replace(before, after))
    # float64 would only take longer to compile.
    kernel = tmp_path / "csrc" / "cpu" / "kernel_baseline.cpp"
    kernel.write_text(kernel.read_text().replace("&forward<double>", "nullptr"))
    program = _build(_compiler("g++"), SANITIZED, planted=kernel)
    result = _drive(program, "baseline")
    assert result.returncode != 0, "the planted bug was not found"
    assert complaint in result.stderr


# ---------------------------------------------------------------- other compilers and processors


@pytest.fixture(scope="module")
def clang_driver() -> Path:
    return _build(_compiler("clang++", "x86_64-linux-gnu"), OPTIMISED)


@pytest.mark.parametrize("isa", ISAS)
def test_clang_agrees(clang_driver, outputs, isa, tmp_path):
    """clang compiles every instruction set without a warning, and all outputs are those of g++, within the budget."""
    result = _drive(clang_driver, isa, tmp_path / "outputs")
    assert result.returncode == 0, result.stderr
    _agree(tmp_path / "outputs", outputs("baseline"))


@pytest.fixture(scope="module")
def aarch64_driver() -> Path:
    return _build(_compiler("aarch64-linux-gnu-g++", "aarch64-linux-musl"), OPTIMISED)


def test_compiles_for_aarch64(aarch64_driver):
    """Nothing but vector extensions: another architecture needs no code of its own."""
    assert aarch64_driver.exists()


def test_aarch64_agrees(aarch64_driver, outputs, tmp_path):
    """Executed by an emulator."""
    qemu = (
        shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static") or pytest.skip("there is no qemu-aarch64")
    )
    result = _drive(aarch64_driver, "baseline", tmp_path / "outputs", (qemu,))
    assert result.returncode == 0, result.stderr
    _agree(tmp_path / "outputs", outputs("baseline"))


CORE = (
    "(test_budget and (zeros or narrow)) or test_dtypes or test_identical or (test_nan_stays and nan and both) or "
    "test_every_nan_stays"
)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_core_numerics_with_less_than_the_processor_has(isa):
    """The installed library, told to use an older instruction set, under the same tests and budget."""
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    code = "import pspl_cuda; print(pspl_cuda.backend_info()['cpu']['instruction_set'])"
    chosen = _run([sys.executable, "-c", code], PSPL_CPU_ISA=isa).stdout.strip()
    if chosen != isa:
        pytest.skip(f"this processor has no {isa}, but {chosen}")
    files = [HERE.parent / "kernels" / f"test_{name}.py" for name in ("numerics", "oracle", "properties", "nan")]
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", CORE]
    result = _run(pytest_run, PSPL_CPU_ISA=isa, PSPL_TEST_BACKENDS="cpu")
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 80
