"""Builds the two kernel libraries of pspl_cuda: _cpu always, _cuda where the torch in use and a toolkit allow it.

Decisions are printed, and kept in pspl_cuda/_build.json for pspl_cuda.backend_info(). Environment:

PSPL_CUDA             auto (default): CUDA kernels if torch is a CUDA build and nvcc of its major version is found; a GPU is
                      not looked for. force: the same, but fail if it can't be. off: CPU kernels only.
TORCH_CUDA_ARCH_LIST  architectures to compile for, for example "8.6;9.0+PTX".
CUDA_HOME             the CUDA toolkit.
MAX_JOBS              compilers that run at once.

Metadata stands in pyproject.toml.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
MIN_TORCH = (2, 11)
# One cubin serves all later minor versions of its major one; the last entry's PTX serves what comes after.
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;9.0;10.0;12.0+PTX"
# Files of the CPU kernel that are compiled for more than the baseline; csrc/cpu/launch.cpp chooses at run time.
INSTRUCTION_SETS = {
    "csrc/cpu/kernel_avx2.cpp": ["-mavx2", "-mfma"],
    "csrc/cpu/kernel_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}


def say(message: str) -> None:
    print(f"pspl_cuda: {message}", file=sys.stderr, flush=True)


try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        f"pspl_cuda needs torch to build, but it can't be imported: {error}. Install torch first."
    ) from error

if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < MIN_TORCH:
    raise SystemExit(
        f"pspl_cuda needs torch {'.'.join(map(str, MIN_TORCH))} or later, but {torch.__version__} is installed. Upgrade torch."
    )


def find_toolkit() -> tuple[str | None, str | None]:
    """Make torch use a complete CUDA toolkit; return (its version, None) or (None, why there is none)."""
    home = cpp_extension.CUDA_HOME
    if home is None:
        return None, "no CUDA toolkit was found: install one and set CUDA_HOME"
    nvcc = Path(home) / "bin" / "nvcc"
    try:
        # A dry run names the toolkit's own folder, which is not where nvcc lies if that is a wrapper or a link.
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        dryrun = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"{nvcc} does not run: {error}"
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    if top and not (Path(home) / "include" / "cuda_runtime_api.h").exists():
        home = os.path.normpath(top.group(1).strip())
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = home
    if not (Path(home) / "include" / "cuda_runtime_api.h").exists():
        return None, f"the CUDA toolkit at {home} has no include/cuda_runtime_api.h: set CUDA_HOME to a complete one"
    found = re.search(r"release (\d+\.\d+)", version)
    return (found.group(1), None) if found else (None, f"{nvcc} does not tell its version")


def why_no_cuda() -> tuple[str | None, str | None]:
    """(toolkit version, None) if the CUDA kernels can be built, else (None, the reason)."""
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is not a CUDA build"
    toolkit, reason = find_toolkit()
    if toolkit is None:
        return None, reason
    if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        return None, (
            f"nvcc is of CUDA {toolkit} and torch of CUDA {torch.version.cuda}: set CUDA_HOME to a toolkit of the same major "
            "version"
        )
    return toolkit, None


def decide_cuda() -> dict:
    switch = os.environ.get("PSPL_CUDA", "auto")
    if switch not in ("auto", "force", "off"):
        raise SystemExit(f"PSPL_CUDA is {switch!r}; expected auto, force or off.")
    toolkit, reason = (None, "PSPL_CUDA=off when it was built") if switch == "off" else why_no_cuda()
    if reason is None:
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
        say(f"CUDA kernels: yes, with nvcc {toolkit} for {architectures}")
        return {"toolkit": toolkit, "architectures": re.split(r"[; ]+", architectures)}
    if switch == "force":
        raise SystemExit(f"PSPL_CUDA=force, but the CUDA kernels can't be built: {reason}.")
    say(f"CUDA kernels: no, because {reason}")
    return {"reason": f"{reason}."}


class Build(cpp_extension.BuildExtension):
    """Compiles the files of INSTRUCTION_SETS with their flags, and writes down what was decided."""

    def build_extension(self, extension):
        special = [source for source in extension.sources if source in INSTRUCTION_SETS]
        extension.sources = [source for source in extension.sources if source not in special]
        for source in special:
            flags = INSTRUCTION_SETS[source] if platform.machine().lower() in ("x86_64", "amd64") else []
            extension.extra_objects += self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp) / Path(source).stem),
                include_dirs=extension.include_dirs,
                extra_postargs=[*extension.extra_compile_args["cxx"], *flags],
            )
        super().build_extension(extension)

    def run(self):
        super().run()
        package = Path(self.get_ext_fullpath(self.extensions[0].name)).parent
        (package / "_build.json").write_text(json.dumps(BUILD, indent=2) + "\n")


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


# torch_library.h of the stable ABI: nothing newer than this torch may be used.
TARGET = f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"
COMMON = {"py_limited_api": True, "depends": sources("csrc/**/*.h", "csrc/**/*.cuh")}
# The two math flags change no value, but without them g++ leaves some loops scalar.
CXX = (
    ["-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", TARGET]
    if os.name != "nt"
    else ["/O2", TARGET]
)

BUILD = {"torch": torch.__version__, "_cuda": decide_cuda()}
extensions = [
    cpp_extension.CppExtension(
        "pspl_cuda._cpu",
        sources("csrc/ops_cpu.cpp", "csrc/cpu/*.cpp"),
        extra_compile_args={"cxx": CXX},
        **COMMON,
    )
]
if "toolkit" in BUILD["_cuda"]:
    extensions.append(
        cpp_extension.CUDAExtension(
            "pspl_cuda._cuda",
            sources("csrc/ops_cuda.cpp", "csrc/cuda/*.cu"),
            extra_compile_args={"cxx": [*CXX, "-DUSE_CUDA"], "nvcc": ["-O3", "-DUSE_CUDA", TARGET]},
            **COMMON,
        )
    )

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
    # Python 3.10's stable ABI: one wheel for all later versions.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
