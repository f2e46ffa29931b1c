"""The CUDA kernels of csrc/cuda on a CPU: the unmodified sources, compiled by g++ with cuda_shim.h.

The module offers the public functions of pspl_cuda for CPU tensors. What a launch must not rely on is made hostile: outputs,
workspace and shared memory are full of NaN before it, and the order of blocks, warps and lanes differs from launch to launch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from pspl_cuda import ops
from pspl_cuda.config import REDUCTIONS, check_config, check_flag, check_images, check_step
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


@dataclass(frozen=True)
class Device:
    """What a launch depends on besides its arguments."""

    multiprocessors: int = 132
    # Order of blocks, warps and lanes: 0 first to last, 1 last to first, others shuffled; None for another one each time.
    seed: int | None = None
    # Partial sums and ticket to use again and again, instead of fresh ones for each launch.
    workspace: tuple[np.ndarray, np.ndarray] | None = None


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


def _forward(sr, hr, schedule, window, **fields):
    """One launch. ``fields`` are those of Params that say what to compute, and the outputs as tensors full of NaN."""
    step_tensor, step, alpha, beta, gamma, mu = schedule
    window_size, sigma, c1, c2, padding = window
    dtype = ops.compute_dtype(sr, hr)
    params = {
        "size": [1] * (5 - sr.dim()) + list(sr.shape),
        "sr": _image(sr),
        "hr": _image(hr),
        "residual": None,
        "map": None,
        "map_kind": 0,
        "padding": padding,
        "distance": 0,
        "radius": window_size // 2,
        "sigma": sigma,
        "twice_c1": 2 * c1,
        "twice_c2": 2 * c2,
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
        "mu": mu,
        "eps_squared": 1.0,
        "step": step,
        "step_tensor": 0 if step_tensor is None else step_tensor.data_ptr(),
        "step_dtype": 0 if step_tensor is None else _DTYPES.index(step_tensor.dtype),
        "loss_scale": 1.0,
        "loss": 0,
        "stats": 0,
        **fields,
    }
    name = str(dtype).removeprefix("torch.")
    needed = getattr(kernels, f"forward_partials_{name}")(params, _device.multiprocessors)
    partials, ticket = _device.workspace or new_workspace(needed)
    assert partials.size >= needed
    seed = next(_seeds) if _device.seed is None else _device.seed
    run = getattr(kernels, f"forward_{name}")
    run(params, partials.ctypes.data, ticket.ctypes.data, _device.multiprocessors, seed)
    assert ticket[0] == 0, "the launch did not leave its ticket at 0"


def new_workspace(partials: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory as a launch may find it: partial sums that are not numbers, a ticket that is 0."""
    return np.full(partials, math.nan), np.zeros(1, np.uint32)


def _scale(gradient, residual, upstream, factor):
    run = getattr(kernels, f"scale_{str(residual.dtype).removeprefix('torch.')}")
    memory = residual.data_ptr(), upstream.data_ptr(), factor, gradient.data_ptr()
    run(*memory, _DTYPES.index(gradient.dtype), residual.numel())


class Operators:
    """torch.ops.pspl_cuda as csrc/ops_common.h makes it of a backend, for the emulated kernels."""

    @staticmethod
    def loss(sr, hr, *arguments):
        schedule, window = arguments[:6], arguments[6:11]
        distance, eps, reduction, with_residual, with_stats = arguments[11:]
        dtype = ops.compute_dtype(sr, hr)
        per_pixel = REDUCTIONS[reduction] == "none"
        loss = _poisoned(sr, dtype) if per_pixel else sr.new_full((), math.nan, dtype=dtype)
        residual = _poisoned(sr, dtype) if with_residual else sr.new_empty(0, dtype=dtype)
        stats = sr.new_full((4 if with_stats else 0,), math.nan, dtype=dtype)
        _forward(
            sr,
            hr,
            schedule,
            window,
            distance=distance,
            eps_squared=eps * eps,
            loss_scale=1 / sr.numel() if REDUCTIONS[reduction] == "mean" else 1.0,
            residual=_image(residual) if with_residual else None,
            stats=stats.data_ptr() if with_stats else 0,
            **({"map": _image(loss)} if per_pixel else {"loss": loss.data_ptr()}),
        )
        return loss, residual, stats

    @staticmethod
    def map(sr, hr, *arguments):
        schedule, window, kind = arguments[:6], arguments[6:11], arguments[11]
        out = _poisoned(sr, ops.compute_dtype(sr, hr))
        _forward(sr, hr, schedule, window, map=_image(out), map_kind=kind)
        return out

    @staticmethod
    def scale(residual, upstream, factor, dtype):
        gradient = _poisoned(residual, dtype)
        _scale(gradient, residual, upstream, factor)
        return gradient

    @staticmethod
    def scale_(residual, upstream, factor):
        _scale(residual, residual, upstream, factor)


class _TorchWithOperators:
    """The module torch, but for torch.ops.pspl_cuda."""

    ops = SimpleNamespace(pspl_cuda=Operators)

    def __getattr__(self, name):
        return getattr(torch, name)


def _load_autograd():
    """A second copy of pspl_cuda.autograd, unmodified, that calls the operators above."""
    spec = importlib.util.find_spec("pspl_cuda.autograd")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch = _TorchWithOperators()
    return module


_autograd = _load_autograd()


def pspl_loss(sr, hr, step, *, return_stats=False, **keywords):
    """pspl_cuda.pspl_loss by the emulated kernels."""
    config = check_config(**keywords)
    check_images(sr, hr)
    step = check_step(step, sr.device)
    loss, stats = _autograd.loss(sr, hr, step, config, check_flag("return_stats", return_stats))
    return (loss, PSPLStats(*stats.unbind(), config.data_range)) if return_stats else loss


@torch.no_grad()
def similarity_map(sr, hr, **keywords):
    """pspl_cuda.similarity_map by the emulated kernel."""
    config = check_config(**keywords)
    check_images(sr, hr)
    return _autograd.similarity(sr, hr, config)


@torch.no_grad()
def attention_map(sr, hr, step, **keywords):
    """pspl_cuda.attention_map by the emulated kernel."""
    config = check_config(**keywords)
    check_images(sr, hr)
    return _autograd.attention(sr, hr, check_step(step, sr.device), config)
