"""The operators ``torch.ops.pspl_cuda.*``: their schemas and fake kernels, and the arguments that a Config makes.

The schemas are defined in Python, so that the CPU and the CUDA library can each register kernels and work without the other. The
arguments are those of ``csrc/bindings/operators.h``. ``loss`` is differentiable: its derivative is in ``_autograd.py``. The other
operators are internal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _library, _torch
from .config import DISTANCES, PADDINGS, REDUCTIONS, Config, compute_dtype

DEFINITIONS = _torch.define_library("pspl_cuda")

# Returns
#   result  loss_weight times the loss, 0-dim; for reduction "none" a map of sr's shape and layout
#   stats   [4] in the order of PSPLStats; empty unless with_stats
# in the compute type: float64 if an image is float64, else float32. step is used where step_tensor is None. constants is
# Config.constants(); padding, distance and reduction are positions in PADDINGS, DISTANCES and REDUCTIONS.
_IMAGES_AND_WINDOW = (
    "Tensor sr, Tensor hr, Tensor? step_tensor, float step, float[] constants, int window_size, int padding"
)
_LOSS = f"{_IMAGES_AND_WINDOW}, int distance, int reduction, float loss_weight, bool with_stats"
DEFINITIONS.define(f"loss({_LOSS}) -> (Tensor result, Tensor stats)", tags=torch.Tag.pt2_compliant_tag)
# The same, and the gradient of result with respect to sr, of sr's shape and layout: the saved gradient.
DEFINITIONS.define(
    f"loss_and_gradient({_LOSS}, ScalarType gradient_dtype) -> (Tensor result, Tensor stats, Tensor saved_gradient)",
    tags=torch.Tag.pt2_compliant_tag,
)
# The attention map, or else the similarity map, of sr's shape and layout.
DEFINITIONS.define(f"map({_IMAGES_AND_WINDOW}, bool attention) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
# Returns sign * grad_output * saved_gradient, formed in float32, which grad_output has, and rounded once to dtype. sign is 1
# for sr, -1 for hr.
DEFINITIONS.define(
    "scale_gradient(Tensor saved_gradient, Tensor grad_output, int sign, ScalarType dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
# The same for sr, in place. A grad_output of 1 leaves the memory unchanged.
DEFINITIONS.define(
    "scale_gradient_(Tensor(a!) saved_gradient, Tensor grad_output) -> ()", tags=torch.Tag.pt2_compliant_tag
)
# What a call of PSPLLoss adds to its count: 1, or 0 while a backward pass runs, as a tensor like ``calls``. Compiled code asks
# for it when it runs, not when it is traced.
DEFINITIONS.define("increment(Tensor calls) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
# The instruction set that the CPU kernels use: "avx512", "avx2" or "baseline".
DEFINITIONS.define("cpu_instruction_set() -> str")

_library.load()


class Operators(NamedTuple):
    """The operators that a call of the loss consists of. The tests have a second set, which runs the CUDA source on a CPU."""

    loss: Callable[..., tuple[Tensor, Tensor]]
    loss_and_gradient: Callable[..., tuple[Tensor, Tensor, Tensor]]
    map: Callable[..., Tensor]
    scale_gradient: Callable[..., Tensor]
    scale_gradient_: Callable[..., None]


OPERATORS = Operators(*(getattr(torch.ops.pspl_cuda, name).default for name in Operators._fields))
increment = torch.ops.pspl_cuda.increment.default


def call_loss(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    config: Config,
    with_stats: bool,
    loss_weight: float,
    operators: Operators = OPERATORS,
) -> tuple[Tensor, Tensor]:
    """The operator ``loss`` on a checked ``config``, with any ``loss_weight``."""
    _refuse_transforms()
    # The kernels take a positive weight as a constant of the launch, at no cost.
    weight, rest = (loss_weight, 1.0) if loss_weight > 0 else (1.0, loss_weight)
    choices = DISTANCES.index(config.distance), REDUCTIONS.index(config.reduction)
    result, stats = operators.loss(sr, hr, *_step_and_window(step, config), *choices, weight, with_stats)
    return (result if rest == 1 else rest * result), stats


def call_map(
    sr: Tensor, hr: Tensor, step: float | Tensor | None, config: Config, operators: Operators = OPERATORS
) -> Tensor:
    """The operator ``map``: the attention at ``step``, or the similarity if it is None."""
    _refuse_transforms()
    at = 0.0 if step is None else step
    return operators.map(sr, hr, *_step_and_window(at, config), step is not None)


def _refuse_transforms() -> None:
    """Raise inside a transform of torch.func. The operators can't: torch runs a vmap as a loop over them."""
    if not torch.compiler.is_compiling() and _torch.in_transform():
        raise RuntimeError(
            "A fused kernel was called inside a transform of torch.func (grad, vjp, jacrev, hessian, vmap), which it does not "
            'support. Pass backend="reference".'
        )


def _step_and_window(step: float | Tensor, config: Config) -> tuple[Any, ...]:
    """The operators' arguments from ``step_tensor`` to ``padding``."""
    numbers = config.constants()
    if isinstance(step, Tensor) and torch.compiler.is_dynamo_compiling():
        # A float of an operator is a constant of the graph, which each new value compiles again; a tensor is an input. So alpha
        # and beta become part of step, which is then delta.
        step = step * config.alpha + config.beta if config.alpha != 0 else torch.full_like(step, config.beta)
        numbers = (1.0, 0.0, *numbers[2:])
    step_tensor, number = (step, 0.0) if isinstance(step, Tensor) else (None, step)
    return step_tensor, number, numbers, config.window_size, PADDINGS.index(config.padding)


@torch.library.impl(DEFINITIONS, "increment", "CompositeExplicitAutograd")
def _increment(calls: Tensor) -> Tensor:
    return torch.full_like(calls, 0 if _torch.in_backward() else 1)


@torch.library.register_fake("pspl_cuda::increment", lib=DEFINITIONS)
def _increment_fake(calls: Tensor) -> Tensor:
    return torch.empty_like(calls)


@torch.library.register_fake("pspl_cuda::loss", lib=DEFINITIONS)
def _loss_fake(
    sr: Tensor,
    hr: Tensor,
    step_tensor: Tensor | None,
    step: float,
    constants: list[float],
    window_size: int,
    padding: int,
    distance: int,
    reduction: int,
    loss_weight: float,
    with_stats: bool,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(sr, hr)
    per_pixel = REDUCTIONS[reduction] == "none"
    result = torch.empty_like(sr, dtype=dtype) if per_pixel else sr.new_empty((), dtype=dtype)
    return result, sr.new_empty(4 if with_stats else 0, dtype=dtype)


@torch.library.register_fake("pspl_cuda::loss_and_gradient", lib=DEFINITIONS)
def _loss_and_gradient_fake(sr: Tensor, hr: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *of_loss, gradient_dtype = arguments
    return *_loss_fake(sr, hr, *of_loss), torch.empty_like(sr, dtype=gradient_dtype)


@torch.library.register_fake("pspl_cuda::map", lib=DEFINITIONS)
def _map_fake(sr: Tensor, hr: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(sr, dtype=compute_dtype(sr, hr))


@torch.library.register_fake("pspl_cuda::scale_gradient", lib=DEFINITIONS)
def _scale_gradient_fake(saved_gradient: Tensor, grad_output: Tensor, sign: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(saved_gradient, dtype=dtype)


@torch.library.register_fake("pspl_cuda::scale_gradient_", lib=DEFINITIONS)
def _scale_gradient_in_place_fake(saved_gradient: Tensor, grad_output: Tensor) -> None:
    return None
