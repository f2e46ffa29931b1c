"""The compiled operators ``torch.ops.pspl_cuda.*``: loading them, saying which are there, and their fake kernels.

Schemas and contracts stand in csrc/ops_cpu.cpp. A failed load is remembered, never raised: the reference must keep working.
"""

from __future__ import annotations

import json
import os
import warnings
from importlib.metadata import distributions
from pathlib import Path

import torch
from torch import Tensor

from .config import BACKENDS, DISTANCES, PADDINGS, REDUCTIONS, Config, check_choice

# Position = number in csrc/pspl_params.h.
MAP_KINDS = ("loss", "similarity", "attention")


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
    try:
        torch.ops.load_library(files[0])
    except OSError as error:
        return f"{files[0].name} does not load under torch {torch.__version__} ({error}); reinstall the package."
    return None


_PACKAGE = _find_package()
_BUILD = _read_build(_PACKAGE)
# The CPU library holds the schemas: without it the CUDA library is of no use.
_why_no_cpu = _load("_cpu")
_why_no_cuda = _load("_cuda") if _why_no_cpu is None else f"the CPU library, which it needs, is missing: {_why_no_cpu}"
_WHY_NOT = {"cpu": _why_no_cpu, "cuda": _why_no_cuda, "reference": None}

_warned: set[str] = set()


def _fall_back(device: torch.device) -> str:
    if device.type in ("cpu", "cuda"):
        reason = f"the {device.type} kernel is not available: {_WHY_NOT[device.type]}"
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
    if backend == "auto":
        backend = os.environ.get("PSPL_BACKEND", "auto")
    if backend == "auto":
        fused = device.type in ("cpu", "cuda") and _WHY_NOT[device.type] is None
        return device.type if fused else _fall_back(device)
    check_backend(backend)
    if backend != "reference" and device.type != backend:
        raise ValueError(
            f"backend is {backend!r}, but sr and hr are on {device}; expected {backend} tensors. "
            'Move the images, or pass backend="auto".'
        )
    return backend


def backend_info() -> dict:
    """What is installed, as plain data.

    Keys ``cpu`` and ``cuda``: ``available`` (bool) and ``reason`` (why not, else None); for the CPU also ``instruction_set``
    (what the kernel chose on this processor), for CUDA ``toolkit`` (nvcc's version) and ``architectures`` (what was compiled,
    for example ``["8.0", "9.0+PTX"]``). ``torch_built_with`` and ``torch`` are the versions at build time and now.
    """
    cuda = _BUILD.get("_cuda", {})
    return {
        "torch": torch.__version__,
        "torch_built_with": _BUILD.get("torch"),
        "cpu": {
            "available": _WHY_NOT["cpu"] is None,
            "reason": _WHY_NOT["cpu"],
            "instruction_set": torch.ops.pspl_cuda.cpu_instruction_set() if _WHY_NOT["cpu"] is None else None,
        },
        "cuda": {
            "available": _WHY_NOT["cuda"] is None,
            "reason": _WHY_NOT["cuda"],
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
