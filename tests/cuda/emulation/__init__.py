"""The CUDA kernels of csrc/cuda on a CPU: the unmodified sources, compiled by g++ with cuda_shim.h.

The module offers the public functions of pspl_cuda for CPU tensors. What a launch must not rely on is made hostile: outputs,
workspace and shared memory are full of NaN before it, and the order of blocks, warps and lanes differs from launch to launch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pspl_cuda import _autograd, _ops
from pspl_cuda.config import DEFAULTS, REDUCTIONS, check_config, check_flag, check_images, check_step, compute_dtype
from pspl_cuda.stats import PSPLStats

from . import build


def _load():
    spec = importlib.util.spec_from_file_location("emulated_kernels", build.module())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernels = _load()

# DType of csrc/pspl_params.h.
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# Position = number in cuda_shim.h.
APPROXIMATIONS = ("nearest", "largest", "smallest", "random")


@dataclass(frozen=True)
class Device:
    """What a launch depends on besides its arguments."""

    multiprocessors: int = 132
    # Order of blocks, warps and lanes: 0 first to last, 1 last to first, others shuffled; None for another one each time.
    seed: int | None = None
    # Partial sums and ticket to use again and again, instead of fresh ones for each launch.
    workspace: tuple[np.ndarray, np.ndarray] | None = None
    # What approximate instructions return within their documented error bounds: one of APPROXIMATIONS.
    approximation: str = "nearest"
    # Executes forward launches in place of the emulation: driver(kernel's mangled name, blocks, bytes of shared memory,
    # arguments, memory), where memory is what the launch may access: {address: bytes}.
    driver: Callable[[str, int, int, bytes, dict[int, int]], None] | None = None


_device = Device()
_seeds = itertools.count()


@contextlib.contextmanager
def device(**changes):
    """Launches inside this context go to another Device."""
    global _device
    before, _device = _device, replace(_device, **changes)
    try:
        yield
    finally:
        _device = before


def _poisoned(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(like, dtype=dtype).fill_(math.nan)


def _image(tensor: torch.Tensor) -> dict:
    *leading, row, column = tensor.stride()
    return {
        "data": tensor.data_ptr(),
        "dtype": _DTYPES.index(tensor.dtype),
        "stride": [0] * (5 - tensor.dim()) + [*leading, row, column],
    }


def _readable(sr, hr, dtype):
    """The images as csrc/bindings/ops_cuda.cpp converts them."""
    for converted in ((sr, hr), (sr, hr.to(dtype))):
        if kernels.has_kernels(*(_DTYPES.index(image.dtype) for image in converted)):
            return converted
    return sr.to(dtype), hr.to(dtype)


def _forward(
    sr,
    hr,
    step_tensor,
    step,
    constants,
    window_size,
    padding,
    *,
    distance=0,
    output=0,
    loss_weight=1.0,
    with_stats=False,
    gradient_dtype=None,
):
    """run_forward() of csrc/bindings/operators.h: the result, the statistics and the saved gradient."""
    dtype = compute_dtype(sr, hr)
    sr, hr = _readable(sr, hr, dtype)
    reduced = output < REDUCTIONS.index("none")
    result = sr.new_full((), math.nan, dtype=dtype) if reduced else _poisoned(sr, dtype)
    gradient = _poisoned(sr, gradient_dtype) if gradient_dtype else None
    stats = sr.new_full((4 if with_stats else 0,), math.nan, dtype=dtype)
    is_tensor = step_tensor is not None
    params = {
        "constants": constants,
        "window_size": window_size,
        "padding": padding,
        "distance": distance,
        "output": output,
        "loss_weight": loss_weight,
        "size": [1] * (5 - sr.dim()) + list(sr.shape),
        "sr": _image(sr),
        "hr": _image(hr),
        "gradient": _image(gradient) if gradient_dtype else None,
        "map": None if reduced else _image(result),
        "step": 0.0 if is_tensor else step,
        "step_tensor": step_tensor.data_ptr() if is_tensor else 0,
        "step_dtype": _DTYPES.index(step_tensor.dtype) if is_tensor else 0,
        "loss": result.data_ptr() if reduced else 0,
        "stats": stats.data_ptr() if with_stats else 0,
    }
    name = str(dtype).removeprefix("torch.")
    needed = kernels.workspace_size(params)
    partials, ticket = _device.workspace or new_workspace(needed)
    assert partials.size >= needed
    seed = next(_seeds) if _device.seed is None else _device.seed
    kernels.set_approximation(APPROXIMATIONS.index(_device.approximation))
    run = getattr(kernels, f"forward_{name}")
    tensors = (sr, hr, result, gradient, stats, step_tensor)
    storages = [x.untyped_storage() for x in tensors if x is not None and x.numel()]
    memory = {x.data_ptr(): x.nbytes() for x in storages} | {x.ctypes.data: x.nbytes for x in (partials, ticket)}
    kernels.set_driver(_device.driver and functools.partial(_device.driver, memory=memory))
    try:
        run(params, partials.ctypes.data, ticket.ctypes.data, _device.multiprocessors, seed)
    finally:
        kernels.set_driver(None)
    assert ticket[0] == 0, "the launch did not leave its ticket at 0"
    return result, stats, gradient


def _loss_and_gradient(sr, hr, step_tensor, step, constants, window_size, padding, *of_loss):
    names = ("distance", "output", "loss_weight", "with_stats", "gradient_dtype")
    of_loss = dict(zip(names, of_loss, strict=False))
    return _forward(sr, hr, step_tensor, step, constants, window_size, padding, **of_loss)


def _loss(*arguments):
    return _loss_and_gradient(*arguments)[:2]


def _map(*arguments):
    *call, attention = arguments
    return _forward(*call, output=len(REDUCTIONS) + attention)[0]


def _run_backward(gradient, saved_gradient, grad_output, sign):
    kernels.backward(
        saved_gradient.data_ptr(),
        _DTYPES.index(saved_gradient.dtype),
        grad_output.data_ptr(),
        sign,
        gradient.data_ptr(),
        _DTYPES.index(gradient.dtype),
        saved_gradient.numel(),
        _device.multiprocessors,
    )
    return gradient


def _scale_gradient(saved_gradient, grad_output, sign, dtype):
    return _run_backward(_poisoned(saved_gradient, dtype), saved_gradient, grad_output, sign)


def _scale_gradient_(saved_gradient, grad_output):
    _run_backward(saved_gradient, saved_gradient, grad_output, 1)


def new_workspace(partials: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory as a launch may find it: partial sums that are not numbers, a ticket that is 0."""
    return np.full(partials, math.nan), np.zeros(1, np.uint32)


_KERNELS = _ops.Operators(_loss, _loss_and_gradient, _map, _scale_gradient, _scale_gradient_)
# What torch's dispatcher would make of them: the Autograd kernels come first.
_OPERATORS = _KERNELS._replace(
    loss=functools.partial(_autograd.differentiable_loss, operators=_KERNELS),
    map=functools.partial(_autograd.constant_map, operators=_KERNELS),
)


def _config(keywords):
    unknown = keywords.keys() - DEFAULTS._asdict().keys()
    if unknown:
        raise TypeError(f"unexpected keywords {sorted(unknown)}")
    return check_config(DEFAULTS._replace(**keywords))


def pspl_loss(sr, hr, step, *, return_stats=False, **keywords):
    """pspl_cuda.pspl_loss by the emulated kernels."""
    config = _config(keywords)
    check_flag("return_stats", return_stats)
    check_images(sr, hr)
    step = check_step(step, sr.device)
    loss, stats = _ops.call_loss(sr, hr, step, config, return_stats, 1.0, _OPERATORS)
    return (loss, PSPLStats(*stats.unbind(), config.data_range)) if return_stats else loss


def similarity_map(sr, hr, **keywords):
    """pspl_cuda.similarity_map by the emulated kernel."""
    config = _config(keywords)
    check_images(sr, hr)
    return _ops.call_map(sr, hr, None, config, _OPERATORS)


def attention_map(sr, hr, step, **keywords):
    """pspl_cuda.attention_map by the emulated kernel."""
    config = _config(keywords)
    check_images(sr, hr)
    return _ops.call_map(sr, hr, check_step(step, sr.device), config, _OPERATORS)
