"""The operators ``torch.ops.pspl_cuda.*``: their schemas and fake kernels.

The schemas are defined in Python, so that the CPU and the CUDA library can each register kernels and work without the other. The
arguments are those of ``csrc/bindings/operators.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _library, _torch
from .config import OUTPUTS, compute_dtype

DEFINITIONS = torch.library.Library("pspl_cuda", "DEF")

# Returns, for s = loss_weight and the gradient of sr for grad_output = 1:
#   result          s times the loss, 0-dim for output mean and sum; else a map of sr's shape and layout
#   saved_gradient  s times the gradient, sr's shape and layout; empty for gradient_dtype None
#   stats           [4] in the order of PSPLStats; empty unless with_stats
# result and stats have the compute type: float64 if an image is float64, else float32. step is used where step_tensor is None.
# constants is Config.constants; padding, distance and output are positions in PADDINGS, DISTANCES and OUTPUTS.
DEFINITIONS.define(
    "forward(Tensor sr, Tensor hr, Tensor? step_tensor, float step, float[] constants, int window_size, int padding, "
    "int distance, int output, float loss_weight, ScalarType? gradient_dtype, bool with_stats) "
    "-> (Tensor result, Tensor saved_gradient, Tensor stats)",
    tags=torch.Tag.pt2_compliant_tag,
)
# Returns sign * grad_output * saved_gradient, formed in float32, which grad_output has, and rounded once to dtype. sign is 1
# for sr, -1 for hr.
DEFINITIONS.define(
    "backward(Tensor saved_gradient, Tensor grad_output, int sign, ScalarType dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
# The same for sr, in place. A grad_output of 1 leaves the memory unchanged.
DEFINITIONS.define("backward_(Tensor(a!) saved_gradient, Tensor grad_output) -> ()", tags=torch.Tag.pt2_compliant_tag)
# What a call of PSPLLoss adds to its count: 1, or 0 while a backward pass runs, as a tensor like ``calls``. Compiled code asks
# for it when it runs, not when it is traced.
DEFINITIONS.define("increment(Tensor calls) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
# The instruction set that the CPU kernels use: "avx512", "avx2" or "baseline".
DEFINITIONS.define("cpu_instruction_set() -> str")

_library.load()


class Arguments(NamedTuple):
    """The arguments of the forward operator after ``step``, in the order of its schema."""

    constants: Sequence[float]
    window_size: int
    padding: int
    distance: int
    output: int
    loss_weight: float = 1.0
    gradient_dtype: torch.dtype | None = None
    with_stats: bool = False


forward = torch.ops.pspl_cuda.forward.default
backward = torch.ops.pspl_cuda.backward.default
backward_ = torch.ops.pspl_cuda.backward_.default
increment = torch.ops.pspl_cuda.increment.default


@torch.library.impl(DEFINITIONS, "increment", "CompositeExplicitAutograd")
def _increment(calls: Tensor) -> Tensor:
    return torch.full_like(calls, 0 if _torch.in_backward() else 1)


@torch.library.register_fake("pspl_cuda::increment")
def _increment_fake(calls: Tensor) -> Tensor:
    return torch.empty_like(calls)


@torch.library.register_fake("pspl_cuda::forward")
def _forward_fake(
    sr: Tensor, hr: Tensor, step_tensor: Tensor | None, step: float, *positional: Any
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = Arguments(*positional)
    dtype = compute_dtype(sr, hr)
    reduced = OUTPUTS[arguments.output] in ("mean", "sum")
    result = sr.new_empty((), dtype=dtype) if reduced else torch.empty_like(sr, dtype=dtype)
    saved = arguments.gradient_dtype
    saved_gradient = torch.empty_like(sr, dtype=saved) if saved else sr.new_empty(0, dtype=dtype)
    return result, saved_gradient, sr.new_empty(4 if arguments.with_stats else 0, dtype=dtype)


@torch.library.register_fake("pspl_cuda::backward")
def _backward_fake(saved_gradient: Tensor, grad_output: Tensor, sign: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(saved_gradient, dtype=dtype)


@torch.library.register_fake("pspl_cuda::backward_")
def _backward_in_place_fake(saved_gradient: Tensor, grad_output: Tensor) -> None:
    return None
