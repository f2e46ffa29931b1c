"""The resources of the CUDA kernels, measured without a GPU: registers, stack, spills and shared memory of every kernel on every
architecture, and the instructions of a training step's inner loop.

    python tests/tools/cuda_resources.py

tests/cuda/test_cuda_compile.py checks the results against limits. It needs nvcc, and for the instructions cuobjdump and
nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import site
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
EMULATION = ROOT / "tests" / "cuda" / "emulation"
BUILD = EMULATION / "build" / "nvcc"

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# torch's own flags, without torch on the include path: kernels do not use it.
FLAGS = (
    "-std=c++17 -O3 -Werror all-warnings -Xptxas -v "
    "-D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_BFLOAT16_CONVERSIONS__ "
    "-D__CUDA_NO_HALF2_OPERATORS__"
)
PROCESSES = 2

# The most instructions per output pixel, for sm_90, of the inner loop of STEADY_STATE's kernel.
STEADY_STATE = "strip_forward<float, float, 5, kUnit, kL1>"
TARGET = 146


def find_tool(name: str) -> str | None:
    """Path of a tool of the CUDA toolkit: from PATH, CUDA_HOME, /usr/local, or a package of PyPI."""
    places = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places += sorted(Path("/usr/local").glob("cuda-*/bin"), reverse=True)
    for packages in map(Path, site.getsitepackages()):
        places += [packages / "triton/backends/nvidia/bin", *packages.glob("nvidia/cu*/bin")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, places)))


def _ninja() -> str:
    try:
        import ninja
    except ImportError:
        return "ninja"
    return str(Path(ninja.BIN_DIR) / "ninja")


def compile_all(sources: list[Path] | None = None, folder: Path = BUILD) -> dict[str, Path]:
    """Compile every .cu file for every architecture, those that have changed, and return the objects by name.

    The output of ptxas is beside each object, in ``<name>.log``. Raises RuntimeError with nvcc's output if there are errors or
    warnings.
    """
    sources = sources or sorted((CSRC / "cuda").rglob("*.cu"))
    architectures = " ".join(f"-gencode arch=compute_{n},code=sm_{n}" for n in ARCHITECTURES)
    nvcc = f"{find_tool('nvcc')} {FLAGS} {architectures}"
    lines = [
        "rule nvcc",
        f"  command = {nvcc} -MD -MF $out.d -c $in -o $out > $log 2>&1 || (cat $log; exit 1)",
        "  depfile = $out.d",
        "  deps = gcc",
        *(f"build {s.stem}.o: nvcc {s}\n  log = {s.stem}.log" for s in sources),
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several pytest runs may want it at once
        (folder / "build.ninja").write_text("\n".join(lines))
        result = subprocess.run([_ninja(), "-C", folder, "-j", str(PROCESSES)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc does not accept the kernels:\n{result.stdout[-6000:]}")
    return {s.stem: folder / f"{s.stem}.o" for s in sources}


# ---------------------------------------------------------------- registers, stack, spills


class Resources(NamedTuple):
    """Resources of one kernel for one architecture, from ptxas; sizes in bytes."""

    registers: int
    stack: int
    spills: int


@functools.cache
def _enumerators() -> dict[str, list[str]]:
    """Names of the enumerators that kernels are specialised for: c++filt shows numbers."""
    text = "".join((CSRC / "cuda" / name).read_text() for name in ("strip_forward.cuh", "pixel.cuh"))
    found = {}
    for enum in ("Access", "Work"):
        (body,) = re.findall(rf"enum class {enum} {{(.*?)}}", text, re.DOTALL)
        found[enum] = re.findall(r"^\s*(k\w+)", body, re.MULTILINE)
    return found


@functools.cache
def readable(mangled: str) -> str:
    """strip<float, __half, 5, kUnit, kL1> and the like."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"^void |pspl::cuda::|\(pspl::(Forward|Backward)Params.*$", "", name).replace("_kernel<", "<")
    name = re.sub(r"StripTraits<(.*)> ?>", r"\1>", name)
    for enum, names in _enumerators().items():
        name = re.sub(rf"\({enum}\)(\d)", lambda match, names=names: names[int(match[1])], name)
    return name


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def parse_log(log: str) -> dict[tuple[str, int], Resources]:
    """``{(mangled name, architecture): Resources}`` from the output of ptxas."""
    return {
        (m["name"], int(m["arch"])): Resources(int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in _ENTRY.finditer(log)
    }


def resources() -> dict[str, dict[int, Resources]]:
    """``{kernel: {architecture: Resources}}`` of all kernels, compiled if necessary."""
    table: dict[str, dict[int, Resources]] = {}
    for path in compile_all().values():
        for (mangled, architecture), cost in parse_log(path.with_suffix(".log").read_text()).items():
            table.setdefault(mangled, {})[architecture] = cost
    return dict(sorted((readable(mangled), costs) for mangled, costs in table.items()))


def shared_bytes() -> dict[str, int]:
    """Dynamic shared memory of a block, by kernel without the arguments that do not change it."""
    sizes = {
        f"strip_forward<{t}, {r}>": f"StripShared<StripTraits<{t}, {t}, {r}, Access::kGeneral, Work::kAll>>"
        for t in ("float", "double")
        for r in range(1, 6)
    }
    sizes["generic"] = "GenericShared"
    lines = [f'std::printf("%zu\\n", sizeof({type_}));' for type_ in sizes.values()]
    headers = "".join(f"#include {name}\n" for name in ("<cstdio>", '"strip_forward.cuh"', '"generic_forward.cuh"'))
    source = headers + "using namespace pspl::cuda; int main() {" + "".join(lines) + "}"
    program = BUILD / "shared_bytes"
    shim = EMULATION / "cuda_shim.h"
    command = ["g++", "-std=c++17", "-include", shim, "-I", CSRC / "cuda", "-x", "c++", "-", "-o", program]
    subprocess.run(command, input=source, text=True, check=True)
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return dict(zip(sizes, map(int, output.split()), strict=True))


def _shared_by(kernel: str, sizes: dict[str, int]) -> int:
    strip = re.match(r"strip_forward<(\w+), \w+, (\d)", kernel)
    return (
        sizes[f"strip_forward<{strip[1]}, {strip[2]}>"]
        if strip
        else sizes["generic"]
        if kernel.startswith("generic")
        else 0
    )


def table(costs: dict[str, dict[int, Resources]]) -> str:
    """One line per kernel: shared memory of a block, registers by architecture."""

    def cell(cost: Resources) -> str:
        return f"{cost.registers}" + (f"+{cost.spills}" if cost.spills else f"*{cost.stack}" if cost.stack else "")

    sizes = shared_bytes()
    width = max(map(len, costs))
    lines = [f"{'':{width}}{'shared':>8}  registers (+spilled bytes, *stack bytes)"]
    lines.append(f"{'':{width}}{'bytes':>8}" + "".join(f"{f'sm_{a}':>9}" for a in ARCHITECTURES))
    for kernel, by_architecture in costs.items():
        cells = "".join(f"{cell(by_architecture[a]):>9}" for a in ARCHITECTURES)
        lines.append(f"{kernel:{width}}{_shared_by(kernel, sizes):>8}{cells}")
    return "\n".join(lines)


# ---------------------------------------------------------------- instructions


def _instructions(path: Path, kernel: str, architecture: int) -> list[tuple[int, str]]:
    """``(address, instruction)`` of one kernel."""
    command = [find_tool("cuobjdump"), "-arch", f"sm_{architecture}", "-sass", str(path)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for function in re.split(r"\n\s*Function : ", sass)[1:]:
        mangled, body = function.split("\n", 1)
        if readable(mangled.strip()) == kernel:
            return [(int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", body)]
    raise LookupError(f"{path.name} contains no {kernel}")


def steady_state(architecture: int = 90) -> Counter:
    """Instructions by kind for one output pixel in the loop over the rows of a strip that complete an output row.

    It is the shortest loop that fetches a row and has the exponential function of Eq. 7 in it. A lane makes two pixels per
    turn.
    """
    code = _instructions(compile_all()["float32"], STEADY_STATE, architecture)
    loops = []
    for address, text in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            body = [other for at, other in code if int(jump[1], 16) <= at <= address]
            if all(any(kind in other for other in body) for kind in ("LDG", "MUFU.EX2")):
                loops.append(body)
    body = min(loops, key=len)
    kinds = Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in body)
    del kinds["NOP"]
    pixels = sum("MUFU.EX2" in text for text in body)
    return Counter({kind: count / pixels for kind, count in kinds.items()})


def main() -> None:
    if find_tool("nvcc") is None:
        sys.exit("There is no nvcc: not on PATH, in CUDA_HOME or in /usr/local/cuda.")
    print(table(resources()))
    if find_tool("cuobjdump") is None:
        sys.exit("There is no cuobjdump to count instructions with: pip install nvidia-cuda-cuobjdump.")
    kinds = steady_state()
    print(f"\n{STEADY_STATE}, sm_90, inner loop: {kinds.total():.1f} instructions per output pixel (target {TARGET})")
    print(", ".join(f"{count:g} {kind}" for kind, count in kinds.most_common()))


if __name__ == "__main__":
    main()
