"""The compiled operators ``torch.ops.pspl_cuda.*``: loading them, saying which are there, and their fake kernels.

Schemas and contracts stand in csrc/ops_cpu.cpp. A failed load is remembered, never raised: the reference must keep working.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from importlib.metadata import distributions
from pathlib import Path

import torch
from torch import Tensor

from .config import BACKENDS, DISTANCES, PADDINGS, REDUCTIONS, Config, check_choice

# Position = number in csrc/pspl_params.h.
MAP_KINDS = ("loss", "similarity", "attention")
# Names of csrc/cpu/launch.cpp, for PSPL_CPU_ISA.
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")


def _find_package() -> Path:
    """The folder with the compiled libraries.

    Normally this one. Whoever works in the source folder after ``pip install .`` imports the sources, which hold none: then
    those of the installed package are taken.
    """
    here = Path(__file__).parent
    # All distributions of that name: the first may be what a build leaves in the source folder.
    installed = (Path(str(found.locate_file("pspl_cuda"))) for found in distributions(name="pspl_cuda"))
    return next((folder for folder in (here, *installed) if any(folder.glob("_cpu.*"))), here)


def _read_build(package: Path) -> dict:
    path = package / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load(library: str) -> str | None:
    """Load one compiled library; return None, or the reason why it is not there."""
    files = [*_PACKAGE.glob(f"{library}.*so"), *_PACKAGE.glob(f"{library}.*pyd")]
    if not files:
        return _BUILD.get(library, {}).get("reason") or "it was not built; install the package with pip install ."
    foreign = _why_foreign(library, _BUILD, torch.__version__, torch.version.cuda, platform.machine())
    if foreign is not None:
        return foreign
    try:
        torch.ops.load_library(files[0])
    except OSError as error:
        return f"{files[0].name} does not load under torch {torch.__version__} ({error}); reinstall the package."
    return None


def _why_foreign(library: str, build: dict, torch_version: str, torch_cuda: str | None, machine: str) -> str | None:
    """Why a library cannot belong to this machine and torch, told by the build's record of itself; None if it can."""
    if build.get("machine", machine) != machine:
        return f"it was built for {build['machine']}, and this processor is {machine}: reinstall the package here."
    needed = build.get("needs_torch", "0.0")
    if _numbers(torch_version) < _numbers(needed):
        return f"torch {torch_version} is older than {needed}, which the kernels need: upgrade torch."
    toolkit = build.get("_cuda", {}).get("toolkit") if library == "_cuda" else None
    if toolkit and torch_cuda is None:
        return f"it was built for CUDA {toolkit}, and torch {torch_version} is not a CUDA build: install one that is."
    if toolkit and _numbers(toolkit)[0] != _numbers(torch_cuda)[0]:
        return f"it was built for CUDA {toolkit}, and torch {torch_version} is of CUDA {torch_cuda}: reinstall the package."
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 14) of "2.14.1+cu130"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


_PACKAGE = _find_package()
_BUILD = _read_build(_PACKAGE)
# The CPU library holds the schemas: without it the CUDA library is of no use.
_why_no_cpu = _load("_cpu")
_why_no_cuda = _load("_cuda") if _why_no_cpu is None else f"the CPU library, which it needs, is missing: {_why_no_cpu}"
_WHY_NOT = {"cpu": _why_no_cpu, "cuda": _why_no_cuda, "reference": None}

_warned: set[str] = set()
if os.environ.get("PSPL_CPU_ISA", "baseline") not in INSTRUCTION_SETS:
    warnings.warn(
        f"PSPL_CPU_ISA is {os.environ['PSPL_CPU_ISA']!r}; expected one of {', '.join(INSTRUCTION_SETS)}. The best that this "
        "processor has is used.",
        stacklevel=2,
    )


def _why_not_on_gpu(architectures: list[str], capability: tuple[int, int]) -> str | None:
    """Why kernels compiled for ``architectures`` do not run on a GPU of ``capability``; None if they do.

    A cubin ("9.0") runs on its own and later minor versions of its major one, and with a suffix ("9.0a") on its own only; PTX
    ("9.0+PTX" has both) runs on whatever is not older than it (CUDA C++ Programming Guide, "Application Compatibility").
    """
    for architecture in architectures:
        number, *ptx = architecture.split("+")
        compiled = _numbers(number)
        if number[-1].isalpha():
            runs = compiled == capability
        else:
            runs = (compiled[0] == capability[0] and compiled[1] <= capability[1]) or (
                bool(ptx) and compiled <= capability
            )
        if runs:
            return None
    built = ", ".join("sm_" + architecture.replace(".", "") for architecture in architectures)
    major, minor = capability
    return f"it was built for {built}; this device is sm_{major}{minor}: reinstall with TORCH_CUDA_ARCH_LIST={major}.{minor}."


# Per GPU, because the answer is wanted at every call.
_why_not_on: dict[int | None, str | None] = {}


def _why_not(device: torch.device) -> str | None:
    """Why the fused kernel does not run on ``device``, or None."""
    reason = _WHY_NOT[device.type]
    # A compiled graph takes the kernel on trust: asking for the GPU would break it. The kernel itself says the same.
    if reason is not None or device.type != "cuda" or torch.compiler.is_compiling():
        return reason
    if device.index not in _why_not_on:
        architectures = _BUILD.get("_cuda", {}).get("architectures", [])
        _why_not_on[device.index] = None
        if architectures:
            _why_not_on[device.index] = _why_not_on_gpu(architectures, torch.cuda.get_device_capability(device))
    return _why_not_on[device.index]


def _fall_back(device: torch.device) -> str:
    if device.type in ("cpu", "cuda"):
        reason = f"the {device.type} kernel is not available: {_why_not(device)}"
    else:
        reason = f"there is no fused kernel for {device.type} tensors"
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warnings.warn(
            f"pspl_cuda uses its PyTorch reference, which is right but slow: {reason} "
            'Pass backend="reference" to make this choice silently.',
            stacklevel=4,
        )
    return "reference"


def check_backend(backend: str) -> None:
    """Raise unless ``backend`` is a known name and, where it is an order, built."""
    check_choice("backend", backend, BACKENDS)
    if backend != "auto" and _WHY_NOT[backend] is not None:
        raise RuntimeError(f"backend is {backend!r}, but that kernel is not available: {_WHY_NOT[backend]}")


def choose_backend(backend: str, device: torch.device) -> str:
    """Return ``"cuda"``, ``"cpu"`` or ``"reference"`` for tensors on ``device``.

    ``"auto"`` (or the environment variable PSPL_BACKEND in its place) takes the fused kernel of the device, and where there is
    none the reference, with one warning. Any other name is an order: it is followed, or raises.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = os.environ.get("PSPL_BACKEND", "auto")
    if backend == "auto":
        fused = device.type in ("cpu", "cuda") and _why_not(device) is None
        return device.type if fused else _fall_back(device)
    check_backend(backend)
    if backend != "reference" and device.type != backend:
        raise ValueError(
            f"backend is {backend!r}, but sr and hr are on {device}; expected {backend} tensors. "
            'Move the images, or pass backend="auto".'
        )
    if backend != "reference" and _why_not(device) is not None:
        raise RuntimeError(f"backend is {backend!r}, but that kernel does not run on {device}: {_why_not(device)}")
    return backend


def backend_info() -> dict:
    """What is installed, as plain data.

    Keys ``cpu`` and ``cuda``: ``available`` (bool; for CUDA on the current GPU, if there is one) and ``reason`` (why not, else
    None); for the CPU also ``instruction_set`` (what the kernel chose on this processor), for CUDA ``toolkit`` (nvcc's version)
    and ``architectures`` (what was compiled, for example ``["8.0", "9.0+PTX"]``). ``torch_built_with`` and ``torch`` are the
    versions at build time and now.
    """
    cuda = _BUILD.get("_cuda", {})
    reason = _WHY_NOT["cuda"]
    if reason is None and torch.cuda.is_available():
        reason = _why_not(torch.device("cuda", torch.cuda.current_device()))
    return {
        "torch": torch.__version__,
        "torch_built_with": _BUILD.get("torch"),
        "cpu": {
            "available": _WHY_NOT["cpu"] is None,
            "reason": _WHY_NOT["cpu"],
            "instruction_set": torch.ops.pspl_cuda.cpu_instruction_set() if _WHY_NOT["cpu"] is None else None,
        },
        "cuda": {
            "available": reason is None,
            "reason": reason,
            "toolkit": cuda.get("toolkit"),
            "architectures": cuda.get("architectures", []),
        },
    }


def similarity_arguments(config: Config) -> tuple:
    """The operators' arguments that make up Eq. 3 to 5, in schema order."""
    return config.window_size, config.sigma, config.c1, config.c2, PADDINGS.index(config.padding)


def attention_arguments(config: Config) -> tuple:
    """The operators' arguments that make up Eq. 6 to 8 without the step, in schema order."""
    return config.alpha, config.beta, config.gamma, config.mu


def distance_arguments(config: Config) -> tuple:
    """The operators' arguments that make up Eq. 10, in schema order."""
    return DISTANCES.index(config.distance), config.eps, REDUCTIONS.index(config.reduction)


def compute_dtype(sr: Tensor, hr: Tensor) -> torch.dtype:
    """float64 if either image is float64, else float32."""
    return torch.float64 if torch.float64 in (sr.dtype, hr.dtype) else torch.float32


if _WHY_NOT["cpu"] is None:

    @torch.library.register_fake("pspl_cuda::loss")
    def _(sr, hr, step_tensor, step, *arguments):
        reduction, with_residual, with_stats = arguments[-3:]
        dtype = compute_dtype(sr, hr)
        per_pixel = REDUCTIONS[reduction] == "none"
        loss = torch.empty_like(sr, dtype=dtype) if per_pixel else sr.new_empty((), dtype=dtype)
        residual = torch.empty_like(sr, dtype=dtype) if with_residual else sr.new_empty(0, dtype=dtype)
        stats = sr.new_empty(4 if with_stats else 0, dtype=dtype)
        return loss, residual, stats

    @torch.library.register_fake("pspl_cuda::map")
    def _(sr, hr, step_tensor, step, *arguments):
        return torch.empty_like(sr, dtype=compute_dtype(sr, hr))

    @torch.library.register_fake("pspl_cuda::scale")
    def _(residual, upstream, factor, dtype):
        return torch.empty_like(residual, dtype=dtype)

    @torch.library.register_fake("pspl_cuda::scale_")
    def _(residual, upstream, factor):
        return None
