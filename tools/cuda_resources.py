"""The resources of the CUDA kernels, measured without a GPU: registers, stack, spills and shared memory of every kernel on every
architecture; the instructions of the inner loops of training kernels; and the time that these take at the peak rates of a GPU.

    python -m tools.cuda_resources

tests/cuda/test_cuda_compile.py checks the results against limits. It needs nvcc, and for the instructions cuobjdump and
nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from helpers import compiled

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
EMULATION = ROOT / "tests" / "cuda" / "emulation"

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# torch's own flags, without torch on the include path: kernels do not use it.
FLAGS = (
    "-std=c++17 -O3 -Werror all-warnings -Xptxas -v "
    "-D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_BFLOAT16_CONVERSIONS__ "
    "-D__CUDA_NO_HALF2_OPERATORS__"
)

# The kernels of training steps, and the most instructions per output pixel of their inner loop, in the order of ARCHITECTURES:
# what nvcc 13.0 makes of them, rounded up. The last is that of charbonnier under autocast in channels_last.
LIMITS = {
    "strip_forward<float, float, 5, kUnit, kL1>": (170, 170, 170, 170, 171, 119, 172),
    "strip_forward<float, float, 5, kUnit, kL1Stats>": (177, 176, 177, 177, 176, 121, 174),
    "strip_forward<float, float, 5, kSpaced, kL1>": (182, 181, 181, 181, 184, 130, 184),
    "strip_forward<float, float, 5, kUnit, kDistance>": (194, 194, 194, 194, 194, 141, 198),
    "strip_forward<__nv_bfloat16, float, 5, kUnit, kL1>": (187, 173, 173, 173, 173, 122, 174),
    "strip_forward<__nv_bfloat16, float, 5, kSpaced, kL1>": (201, 185, 185, 185, 187, 134, 187),
    "strip_forward<__half, float, 5, kUnit, kL1>": (173, 172, 172, 172, 172, 121, 174),
    "strip_forward<__half, float, 5, kSpaced, kL1>": (185, 184, 184, 184, 186, 132, 186),
    "strip_forward<__half, float, 5, kSpaced, kDistance>": (209, 209, 209, 209, 210, 152, 208),
}
# The FP32 pipe; the last three have two operations each.
_FP32 = {"FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2"}
_NAMES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}


def find_tool(name: str) -> str | None:
    """Path of a tool of the CUDA toolkit: from PATH, CUDA_HOME, /usr/local, or a package of PyPI."""
    places = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places += sorted(Path("/usr/local").glob("cuda-*/bin"), reverse=True)
    for packages in map(Path, sys.path):
        places += [packages / "triton/backends/nvidia/bin", *packages.glob("nvidia/cu*/bin")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, places)))


def compile_all(sources: list[Path] | None = None) -> dict[str, Path]:
    """Compile every .cu file for every architecture, unless helpers/compiled.py has the result, and return the objects by name.

    The output of ptxas is beside each object, with the suffix ``.log``. Raises RuntimeError with nvcc's output if there are
    errors or warnings.
    """
    sources = sources or sorted((CSRC / "cuda").rglob("*.cu"))
    architectures = [part for n in ARCHITECTURES for part in ("-gencode", f"arch=compute_{n},code=sm_{n}")]
    try:
        return compiled.compile_sources([find_tool("nvcc")], [*FLAGS.split(), *architectures], sources)
    except compiled.CompileError as error:
        raise RuntimeError(f"nvcc does not accept the kernels:\n{error}") from None


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
    name = re.sub(
        r"^void |pspl::cuda::|\(anonymous namespace\)::|\(pspl::(Forward|Backward)Params.*$", "", name
    ).replace("_kernel<", "<")
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


@functools.cache
def shared_bytes() -> dict[str, int]:
    """Shared memory that a block uses, by kernel without the arguments that do not change it."""
    sizes = {
        f"strip_forward<{r}>": f"StripShared<StripTraits<float, float, {r}, Access::kGeneral, Work::kAll>>"
        for r in range(1, 6)
    }
    sizes["generic"] = "GenericShared"
    lines = [f'std::printf("%zu\\n", sizeof({type_}));' for type_ in sizes.values()]
    headers = "".join(f"#include {name}\n" for name in ("<cstdio>", '"strip_forward.cuh"', '"generic_forward.cuh"'))
    source = headers + "using namespace pspl::cuda; int main() {" + "".join(lines) + "}"
    shim = EMULATION / "cuda_shim.h"
    command = ["g++", "-std=c++17", "-include", shim, "-isystem", EMULATION / "toolkit", "-I", CSRC / "cuda"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "shared_bytes")
        command += ["-x", "c++", "-", "-o", program]
        subprocess.run(command, input=source, text=True, check=True)
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return dict(zip(sizes, map(int, output.split()), strict=True))


def _shared_by(kernel: str, sizes: dict[str, int]) -> int:
    if strip := re.match(r"strip_forward<\w+, \w+, (\d)", kernel):
        return sizes[f"strip_forward<{strip[1]}>"]
    return sizes["generic"] if kernel.startswith("generic") else 0


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


@functools.cache
def _code(path: Path, architecture: int) -> dict[str, list[tuple[int, str]]]:
    """``{kernel: [(address, instruction)]}`` of an object."""
    command = [find_tool("cuobjdump"), "-arch", f"sm_{architecture}", "-sass", str(path)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for function in re.split(r"\n\s*Function : ", sass)[1:]:
        mangled, body = function.split("\n", 1)
        code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", body)
        found[readable(mangled.strip())] = [(int(address, 16), text) for address, text in code]
    return found


def machine_code(kernel: str, architecture: int) -> list[tuple[int, str]]:
    """The instructions of a strip kernel and their addresses, compiled if necessary."""
    types = dict.fromkeys(_NAMES[name] for name in re.match(r"strip_forward<(\w+), (\w+)", kernel).groups())
    return _code(compile_all()["_".join(types)], architecture)[kernel]


class Loop(NamedTuple):
    """The inner loop of a strip kernel, per output pixel."""

    kinds: Counter  # instructions by kind
    fp32: float  # operations of the FP32 pipe; a packed instruction has two
    wavefronts: float  # of shared memory, 128 bytes each, per warp

    @property
    def instructions(self) -> float:
        return self.kinds.total()


def steady_state(kernel: str, architecture: int = 90) -> Loop:
    """The loop over the rows of a strip that complete an output row.

    It is the shortest loop that fetches a row and has the exponential function of Eq. 7 in it. A lane makes two pixels per
    turn. The lanes of a warp access consecutive addresses in shared memory, so a wavefront moves 128 bytes.
    """
    code = machine_code(kernel, architecture)
    loops = []
    for address, text in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            body = [other for at, other in code if int(jump[1], 16) <= at <= address]
            if all(any(kind in other for other in body) for kind in ("LDG", "MUFU.EX2")):
                loops.append(body)
    body = [re.sub(r"^@!?U?P\w+\s+", "", text).split()[0] for text in min(loops, key=len)]
    body = [name for name in body if name != "NOP"]
    pixels = sum(name.startswith("MUFU.EX2") for name in body)
    kinds = Counter(name.split(".")[0] for name in body)
    width = {"128": 4, "64": 2}
    wavefronts = sum(width.get(name.split(".")[-1], 1) for name in body if name.startswith(("LDS", "STS")))
    fp32 = sum(count * (2 if kind.endswith("2") else 1) for kind, count in kinds.items() if kind in _FP32)
    return Loop(Counter({kind: count / pixels for kind, count in kinds.items()}), fp32 / pixels, wavefronts / pixels)


# ---------------------------------------------------------------- time


class Gpu(NamedTuple):
    """Peak figures of the manufacturer's data sheets."""

    architecture: int
    multiprocessors: int
    gigahertz: float  # boost clock
    gigabytes: float  # of memory traffic per second
    fp32_lanes: int  # per multiprocessor
    shared_bytes: int  # of a multiprocessor
    name: str

    @property
    def pixels_per_ns(self) -> float:
        """What divides a time in cycles of one multiprocessor per pixel."""
        return self.multiprocessors * self.gigahertz


KIB = 1024
GPUS = (
    Gpu(75, 40, 1.59, 320, 64, 64 * KIB, "T4"),
    Gpu(80, 108, 1.41, 2039, 64, 164 * KIB, "A100 80GB"),
    Gpu(86, 82, 1.695, 936, 128, 100 * KIB, "RTX 3090"),
    Gpu(89, 128, 2.52, 1008, 128, 100 * KIB, "RTX 4090"),
    Gpu(89, 142, 2.52, 864, 128, 100 * KIB, "L40S"),
    Gpu(90, 132, 1.98, 3350, 128, 228 * KIB, "H100 SXM"),
    Gpu(90, 132, 1.98, 4800, 128, 228 * KIB, "H200"),
    Gpu(100, 148, 1.965, 8000, 128, 228 * KIB, "B200"),
    Gpu(120, 170, 2.407, 1792, 128, 100 * KIB, "RTX 5090"),
)


def time_model(gpu: Gpu, loop: Loop, bytes_per_pixel: float) -> dict[str, float]:
    """Picoseconds per pixel that each resource of a GPU needs at least, in the inner loop of a large image.

    A multiprocessor issues four warp instructions per cycle, executes ``fp32_lanes`` FP32 operations, and moves one wavefront
    of shared memory. The kernel takes at least as long as the largest of these, and about as long if it is well balanced.
    """
    cycles = {
        "issue": loop.instructions / (4 * 32),
        "FP32": loop.fp32 / gpu.fp32_lanes,
        "shared": loop.wavefronts / 32,
    }
    times = {name: 1000 * count / gpu.pixels_per_ns for name, count in cycles.items()}
    return {**times, "DRAM": 1000 * bytes_per_pixel / gpu.gigabytes}


def resident_warps(gpu: Gpu, cost: Resources, block_bytes: int) -> int:
    """Warps of a kernel on one multiprocessor, which has 65536 registers."""
    per_block = 128 * -(-cost.registers // 8) * 8
    return 4 * min(65536 // per_block, gpu.shared_bytes // (block_bytes + 1024))


def loop_table(kernels: list[str] | None = None) -> str:
    """A Markdown table of the inner loops: what one output pixel costs."""
    lines = [
        "| kernel | architecture | instructions | FFMA, FMUL, FADD | packed | MUFU | integer, moves | memory | FP32 operations | "
        "wavefronts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kernel in kernels or LIMITS:
        for architecture in ARCHITECTURES:
            loop = steady_state(kernel, architecture)

            def count(*kinds, loop=loop):
                return sum(loop.kinds[kind] for kind in kinds)

            scalar, packed = count("FFMA", "FMUL", "FADD"), count("FFMA2", "FMUL2", "FADD2")
            memory = count("LDG", "STG", "LDS", "STS", "LDC", "ULDC")
            rest = loop.instructions - scalar - packed - memory - loop.kinds["MUFU"]
            cells = (loop.instructions, scalar, packed, loop.kinds["MUFU"], rest, memory, loop.fp32, loop.wavefronts)
            name = kernel.removeprefix("strip_forward").strip("<>")
            lines.append(f"| `{name}` | sm_{architecture} | " + " | ".join(f"{cell:g}" for cell in cells) + " |")
    return "\n".join(lines)


def time_table(kernel: str = "strip_forward<float, float, 5, kUnit, kL1>", bytes_per_pixel: float = 12) -> str:
    """A Markdown table of time_model() with the resident warps, for float32 images and their gradient by default."""
    lines = ["| GPU | resident warps | issue | FP32 | shared memory | DRAM | limit |", "|---|---|---|---|---|---|---|"]
    costs = resources()[kernel]
    for gpu in GPUS:
        times = time_model(gpu, steady_state(kernel, gpu.architecture), bytes_per_pixel)
        warps = resident_warps(gpu, costs[gpu.architecture], _shared_by(kernel, shared_bytes()))
        cells = " | ".join(f"{time:.2f}" for time in times.values())
        lines.append(f"| {gpu.name} (sm_{gpu.architecture}) | {warps} | {cells} | {max(times, key=times.get)} |")
    return "\n".join(lines)


def main() -> None:
    if find_tool("nvcc") is None:
        sys.exit("There is no nvcc: not on PATH, in CUDA_HOME or in /usr/local/cuda.")
    print(table(resources()))
    if find_tool("cuobjdump") is None:
        sys.exit("There is no cuobjdump to count instructions with: pip install nvidia-cuda-cuobjdump.")
    print("\nInner loops, per output pixel; wavefronts of 128 bytes of shared memory per warp\n")
    print(loop_table())
    print(
        "\nl1 of float32 images: picoseconds per pixel that a resource takes at its peak rate (a model, not a measurement)\n"
    )
    print(time_table())


if __name__ == "__main__":
    main()
