"""The derivative of the operator ``pspl_cuda::loss``.

torch's dispatcher calls the Autograd kernels below for every call of the operators, whether eager code or a compiled, exported or
traced program makes it. The forward pass writes the finished gradient; the backward pass multiplies it by ``grad_output``, which
is usually 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _torch, reference
from ._ops import DEFINITIONS, OPERATORS, Operators
from .config import CONSTANTS, DISTANCES, REDUCTIONS, Config, compute_dtype


def differentiable_loss(
    sr: Tensor, hr: Tensor, step_tensor: Tensor | None, *arguments: Any, operators: Operators = OPERATORS
) -> tuple[Tensor, Tensor]:
    """The Autograd kernel of the operator ``loss``. ``arguments`` are its arguments from ``step`` on."""
    _refuse_dual_tensors(sr, hr, step_tensor)
    if _needs_gradient(sr, hr):
        return _Loss.apply(operators, sr, hr, step_tensor, arguments)
    with _torch.below_autograd():
        return operators.loss(sr, hr, step_tensor, *arguments)


def _needs_gradient(sr: Tensor, hr: Tensor) -> bool:
    return torch.is_grad_enabled() and (sr.requires_grad or hr.requires_grad)


class _Loss(torch.autograd.Function):
    """``operators.loss`` with its derivative. The statistics have none."""

    @staticmethod
    def forward(
        ctx: Any,
        operators: Operators,
        sr: Tensor,
        hr: Tensor,
        step_tensor: Tensor | None,
        arguments: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        needs_hr = ctx.needs_input_grad[2]
        dtype = _saved_dtype(sr, hr, needs_hr)
        with _torch.below_autograd():
            value, stats, saved_gradient = operators.loss_and_gradient(sr, hr, step_tensor, *arguments, dtype)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(stats)
        ctx.operators = operators
        ctx.arguments = arguments
        ctx.dtypes = (sr.dtype, hr.dtype)
        ctx.hr_strides = None
        if needs_hr and sr.stride() != hr.stride():
            ctx.hr_strides = torch.empty_like(hr, device="meta").stride()
        # The second derivative of l1 is zero. Those of l2 and charbonnier need the images and step. An inference tensor cannot
        # be saved; only the second derivative is then an error.
        *_, distance, _reduction, _loss_weight, _with_stats = arguments
        ctx.curved = DISTANCES[distance] != "l1"
        images = (sr, hr) if ctx.curved and not (sr.is_inference() or hr.is_inference()) else ()
        ctx.save_for_backward(saved_gradient, *images)
        ctx.packed = _torch.hooks_pack_saved_tensors()
        # A copy, because a schedule may update it in place before backward.
        ctx.step_tensor = step_tensor.clone() if images and step_tensor is not None else None
        return value, stats

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        sr_gradient = hr_gradient = None
        if grad_output is not None:
            saved_gradient, *images = ctx.saved_tensors
            if torch.is_grad_enabled() and ctx.curved:
                sr_gradient, hr_gradient = _by_torch(ctx, _differentiable_gradient(ctx, images), grad_output)
            elif _kernels_multiply(saved_gradient, grad_output):
                sr_gradient, hr_gradient = _by_kernels(ctx, saved_gradient, grad_output)
            else:
                sr_gradient, hr_gradient = _by_torch(ctx, saved_gradient, grad_output)
        if hr_gradient is not None and ctx.hr_strides is not None:  # it has the strides of sr
            hr_gradient = hr_gradient.new_empty_strided(hr_gradient.shape, ctx.hr_strides).copy_(hr_gradient)
        return None, sr_gradient, hr_gradient, None, None


def _saved_dtype(sr: Tensor, hr: Tensor, needs_hr: bool) -> torch.dtype:
    """The dtype of the saved gradient: ``sr``'s if each value is still rounded only once, so that its memory can become the
    gradient's.

    In float16 the attention of the first steps and the factor 1/n would underflow before ``grad_output`` multiplies them.
    """
    compute = compute_dtype(sr, hr)
    if sr.dtype == torch.float16 or compute == torch.float64 or (needs_hr and sr.dtype != hr.dtype):
        return compute
    return sr.dtype


def _kernels_multiply(saved_gradient: Tensor, grad_output: Tensor) -> bool:
    """Whether the kernels multiply by ``grad_output``.

    PyTorch does in a graph, where it is fused with other operations (a tracer's tensors are of a class of its own), for
    create_graph, for float64, for a gradient per pixel and for batched gradients.
    """
    return not (
        torch.compiler.is_compiling()
        or type(saved_gradient) is not Tensor
        or grad_output.dtype == torch.float64
        or grad_output.dim() > 0
        or torch.is_grad_enabled()
        or _torch.is_batched(grad_output)
    )


def _by_kernels(ctx: Any, saved_gradient: Tensor, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of both images, each rounded once. That of ``sr`` takes the saved one's memory if nobody else may have it."""
    operators: Operators = ctx.operators
    _, needs_sr, needs_hr, *_ = ctx.needs_input_grad
    sr_dtype, hr_dtype = ctx.dtypes
    hr_gradient = operators.scale_gradient(saved_gradient, grad_output, -1, hr_dtype) if needs_hr else None
    if not needs_sr:
        return None, hr_gradient
    if sr_dtype != saved_gradient.dtype or ctx.packed or _torch.keeps_graph():
        return operators.scale_gradient(saved_gradient, grad_output, 1, sr_dtype), hr_gradient
    operators.scale_gradient_(saved_gradient, grad_output)
    torch.autograd.graph.increment_version(saved_gradient)
    return saved_gradient, hr_gradient


def _by_torch(ctx: Any, gradient: Tensor, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The same by operations that can be traced, batched and differentiated."""
    _, needs_sr, needs_hr, *_ = ctx.needs_input_grad
    sr_dtype, hr_dtype = ctx.dtypes
    gradient = gradient.to(grad_output.dtype) * grad_output
    return gradient.to(sr_dtype) if needs_sr else None, (-gradient).to(hr_dtype) if needs_hr else None


def _differentiable_gradient(ctx: Any, images: list[Tensor]) -> Tensor:
    """The gradient to ``sr`` as a function of the images, on the kernel's attention map: for the second derivative."""
    if not images:
        raise RuntimeError(
            "The second derivative of the l2 and charbonnier distances needs sr and hr, but one is an inference tensor, which "
            "autograd cannot save. Pass its clone(), made outside inference mode."
        )
    sr, hr = images
    step, constants, window_size, padding, distance, reduction, loss_weight, _ = ctx.arguments
    attention = ctx.operators.map(sr, hr, ctx.step_tensor, step, constants, window_size, padding, True)
    numbers: dict[str, Any] = dict(zip(CONSTANTS, constants, strict=True))
    config = Config(**numbers, distance=DISTANCES[distance], reduction=REDUCTIONS[reduction])
    return loss_weight * reference.distance_gradient(sr, hr, attention, config)


def differentiable_loss_and_gradient(
    sr: Tensor, hr: Tensor, step_tensor: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The Autograd kernel of the operator ``loss_and_gradient``, which a graph of make_fx calls if it was made with gradients."""
    if not _needs_gradient(sr, hr):
        with _torch.below_autograd():
            return OPERATORS.loss_and_gradient(sr, hr, step_tensor, *arguments)
    *of_loss, gradient_dtype = arguments
    value, stats = differentiable_loss(sr, hr, step_tensor, *of_loss)
    node: Any = value.grad_fn
    # A copy, because the memory of the saved gradient becomes the gradient's.
    return value, stats, node.saved_tensors[0].to(gradient_dtype, copy=True)


def constant_map(
    sr: Tensor, hr: Tensor, step_tensor: Tensor | None, *arguments: Any, operators: Operators = OPERATORS
) -> Tensor:
    """The Autograd kernel of the operator ``map``: a map is a constant."""
    _refuse_dual_tensors(step_tensor)
    with _torch.below_autograd():
        return operators.map(sr, hr, step_tensor, *arguments)


def _refuse_dual_tensors(*tensors: Tensor | None) -> None:
    """Raise for forward-mode differentiation, for which torch would take the kernels for constants."""
    if _torch.is_dual(*tensors):
        raise RuntimeError(
            "The fused kernels have no forward-mode derivative, but sr, hr or step is a dual tensor (torch.func.jvp, "
            'torch.autograd.forward_ad). Pass backend="reference".'
        )


DEFINITIONS.impl("loss", differentiable_loss, "Autograd")
DEFINITIONS.impl("loss_and_gradient", differentiable_loss_and_gradient, "Autograd")
DEFINITIONS.impl("map", constant_map, "Autograd")
