"""The operators ``torch.ops.pspl_cuda.*``: their schemas, fake kernels, and calls from checked arguments.

The schemas are defined in Python, so that the CPU and the CUDA library can each register kernels and work without the other. The
arguments are those of ``csrc/bindings/operators.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _library
from .config import DISTANCES, OUTPUTS, PADDINGS, Config

DEFINITIONS = torch.library.Library("pspl_cuda", "DEF")

# Returns, for s = loss_weight and the gradient of sr for grad_output = 1:
#   result          s times the loss, 0-dim for output mean and sum; else a map of sr's shape and layout
#   saved_gradient  s times 2^gradient_exponent times the gradient, sr's shape and layout; empty for gradient_dtype None
#   stats           [4] in the order of PSPLStats; empty unless with_stats
# result and stats have the compute type: float64 if an image is float64, else float32. step is used where step_tensor is None.
# padding, distance and output are positions in PADDINGS, DISTANCES and OUTPUTS.
DEFINITIONS.define(
    "forward(Tensor sr, Tensor hr, Tensor? step_tensor, float step, float alpha, float beta, float gamma, float mu, "
    "int window_size, float sigma, float c1, float c2, int padding, int distance, float eps, float loss_weight, "
    "int gradient_exponent, int output, ScalarType? gradient_dtype, bool with_stats) "
    "-> (Tensor result, Tensor saved_gradient, Tensor stats)",
    tags=torch.Tag.pt2_compliant_tag,
)
# Returns factor * grad_output * saved_gradient, formed in grad_output's dtype and rounded once to dtype.
DEFINITIONS.define(
    "backward(Tensor saved_gradient, Tensor grad_output, float factor, ScalarType dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
# The same, in place. A product of 1 leaves the memory unchanged.
DEFINITIONS.define(
    "backward_(Tensor(a!) saved_gradient, Tensor grad_output, float factor) -> ()", tags=torch.Tag.pt2_compliant_tag
)
# The instruction set that the CPU kernels use: "avx512", "avx2" or "baseline".
DEFINITIONS.define("cpu_instruction_set() -> str")

_library.load()


def compute_dtype(sr: Tensor, hr: Tensor) -> torch.dtype:
    """float64 if either image is float64, else float32."""
    return torch.float64 if torch.float64 in (sr.dtype, hr.dtype) else torch.float32


# The schema's arguments after sr, hr, step_tensor and step, in its order.
CONSTANTS = (
    *("alpha", "beta", "gamma", "mu", "window_size", "sigma", "c1", "c2", "padding", "distance", "eps"),
    *("loss_weight", "gradient_exponent", "output", "gradient_dtype", "with_stats"),
)


def constants(
    config: Config,
    output: str,
    *,
    loss_weight: float = 1.0,
    gradient_dtype: torch.dtype | None = None,
    gradient_exponent: int = 0,
    with_stats: bool = False,
) -> dict[str, Any]:
    """The arguments of the forward operator except images and step; ``output`` is one of OUTPUTS."""
    return {
        "alpha": config.alpha,
        "beta": config.beta,
        "gamma": config.gamma,
        "mu": config.mu,
        "window_size": config.window_size,
        "sigma": config.sigma,
        "c1": config.c1,
        "c2": config.c2,
        "padding": PADDINGS.index(config.padding),
        "distance": DISTANCES.index(config.distance),
        "eps": config.eps,
        "loss_weight": loss_weight,
        "gradient_exponent": gradient_exponent,
        "output": OUTPUTS.index(output),
        "gradient_dtype": gradient_dtype,
        "with_stats": with_stats,
    }


def forward(sr: Tensor, hr: Tensor, step: float | Tensor, constants: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward operator on the images' device; the results are those of the schema."""
    step_tensor, number = (step, 0.0) if isinstance(step, Tensor) else (None, step)
    return torch.ops.pspl_cuda.forward.default(sr=sr, hr=hr, step_tensor=step_tensor, step=number, **constants)


def forward_below_autograd(
    sr: Tensor, hr: Tensor, step: float | Tensor, constants: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`forward` without the operator's derivative, for callers that define their own."""
    if torch.compiler.is_dynamo_compiling():
        if isinstance(step, Tensor):
            # A float of an operator is a constant of the graph, which each new value compiles again; a tensor is not.
            alpha, beta = constants["alpha"], constants["beta"]
            step = step * alpha + beta if alpha != 0 else torch.full_like(step, beta)
            constants = constants | {"alpha": 1.0, "beta": 0.0}
        return forward(sr, hr, step, constants)
    with torch._C._AutoDispatchBelowAutograd():
        return forward(sr, hr, step, constants)


def backward(saved_gradient: Tensor, grad_output: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """Return ``factor * grad_output * saved_gradient`` in ``dtype``; ``grad_output`` is 0-dim, float32 or float64."""
    return torch.ops.pspl_cuda.backward.default(
        saved_gradient=saved_gradient, grad_output=grad_output, factor=factor, dtype=dtype
    )


def backward_(saved_gradient: Tensor, grad_output: Tensor, factor: float) -> Tensor:
    """:func:`backward` in place, in ``saved_gradient``'s dtype."""
    torch.ops.pspl_cuda.backward_.default(saved_gradient=saved_gradient, grad_output=grad_output, factor=factor)
    torch.autograd.graph.increment_version(saved_gradient)
    return saved_gradient


@torch.library.register_fake("pspl_cuda::forward")
def _forward_fake(
    sr: Tensor,
    hr: Tensor,
    step_tensor: Tensor | None,
    step: float,
    alpha: float,
    beta: float,
    gamma: float,
    mu: float,
    window_size: int,
    sigma: float,
    c1: float,
    c2: float,
    padding: int,
    distance: int,
    eps: float,
    loss_weight: float,
    gradient_exponent: int,
    output: int,
    gradient_dtype: torch.dtype | None,
    with_stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(sr, hr)
    reduced = OUTPUTS[output] in ("mean", "sum")
    result = sr.new_empty((), dtype=dtype) if reduced else torch.empty_like(sr, dtype=dtype)
    saved_gradient = torch.empty_like(sr, dtype=gradient_dtype) if gradient_dtype else sr.new_empty(0, dtype=dtype)
    return result, saved_gradient, sr.new_empty(4 if with_stats else 0, dtype=dtype)


@torch.library.register_fake("pspl_cuda::backward")
def _backward_fake(saved_gradient: Tensor, grad_output: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(saved_gradient, dtype=dtype)


@torch.library.register_fake("pspl_cuda::backward_")
def _backward_in_place_fake(saved_gradient: Tensor, grad_output: Tensor, factor: float) -> None:
    return None
