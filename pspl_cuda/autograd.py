"""The fused loss as an autograd node around the operators.

The forward pass writes the finished gradient; the backward pass multiplies it by ``grad_output``, which is usually 1.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops, reference
from .config import CONSTANTS, DISTANCES, OUTPUTS, PADDINGS, REDUCTIONS, Config, compute_dtype


def similarity_map(sr: Tensor, hr: Tensor, config: Config) -> Tensor:
    """M_s of Eq. 3 by the fused kernel of the images' device."""
    _check_transforms()
    return _forward(sr, hr, 0.0, _arguments(config, "similarity"))[0]


def attention_map(sr: Tensor, hr: Tensor, step: float | Tensor, config: Config) -> Tensor:
    """M_a of Eq. 6 by the fused kernel of the images' device."""
    _check_transforms(step)
    step, config = _delta_as_step(step, config)
    return _forward(sr, hr, step, _arguments(config, "attention"))[0]


def loss(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    config: Config,
    with_stats: bool = False,
    loss_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``loss_weight`` (above 0) times the loss, and the statistics: ``[4]`` in the order of PSPLStats, else empty."""
    _check_transforms(sr, hr, step)
    step, config = _delta_as_step(step, config)
    needs_gradient = torch.is_grad_enabled() and (sr.requires_grad or hr.requires_grad)
    dtype = _saved_dtype(sr, hr) if needs_gradient else None
    compiling = torch.compiler.is_compiling()  # such programs must not contain what is only faster in eager mode
    make_arguments = _arguments if compiling else _cached_arguments
    arguments = make_arguments(config, config.reduction, loss_weight, dtype, with_stats)
    # Exported and traced programs cannot contain the autograd node: the operator under autograd stays in them.
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if needs_gradient and not exporting:
        return (_Loss.apply if compiling else _eager_apply)(sr, hr, step, arguments, False)
    value, _, stats = _forward(sr, hr, step, arguments, derivative=needs_gradient)
    return value, stats


def _delta_as_step(step: float | Tensor, config: Config) -> tuple[float | Tensor, Config]:
    """Under compile, return delta as the step, with alpha = 1 and beta = 0.

    A float of an operator is a constant of the graph, which each new value compiles again; a tensor is an input.
    """
    if isinstance(step, Tensor) and torch.compiler.is_dynamo_compiling():
        step = step * config.alpha + config.beta if config.alpha != 0 else torch.full_like(step, config.beta)
        config = config._replace(alpha=1.0, beta=0.0)
    return step, config


def _arguments(config: Config, output: str, *more: Any) -> _ops.Arguments:
    """The arguments of the operator for ``config``; ``more`` are those from ``loss_weight`` on, by default those of a map."""
    choices = PADDINGS.index(config.padding), DISTANCES.index(config.distance), OUTPUTS.index(output)
    return _ops.Arguments(config.constants, config.window_size, *choices, *more)


_cached_arguments = functools.lru_cache(maxsize=256)(_arguments)


def _forward(
    sr: Tensor, hr: Tensor, step: float | Tensor, arguments: _ops.Arguments, derivative: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward operator, by default without its derivative, which _Loss supplies or the caller does not need."""
    step_tensor, number = (step, 0.0) if isinstance(step, Tensor) else (None, step)
    if derivative or torch.compiler.is_dynamo_compiling():
        return _ops.forward(sr, hr, step_tensor, number, *arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.forward(sr, hr, step_tensor, number, *arguments)


# The innermost of torch.func's transforms, or None. A private function of torch: without it, torch's own errors remain.
_peek_transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: False)


def _check_transforms(*arguments: float | Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    # torch would treat the operator as a constant with zero derivative. Outside forward mode its level, a private variable of
    # torch, is -1; without it, each tensor is tested.
    if getattr(forward_ad, "_current_level", 0) >= 0 and any(
        isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None for argument in arguments
    ):
        raise RuntimeError(
            "The fused kernels have no forward-mode derivative, but sr, hr or step is a dual tensor (torch.func.jvp, "
            'torch.autograd.forward_ad). Pass backend="reference".'
        )
    if _peek_transforms() is not None:
        raise RuntimeError(
            "A fused kernel was called inside a transform of torch.func (grad, vjp, jacrev, hessian, vmap), which it does not "
            'support. Pass backend="reference".'
        )


class _Loss(torch.autograd.Function):
    """The forward operator with its derivative.

    With ``expose`` the saved gradient is returned as well, as the operator does; its memory is then not reused for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, sr: Tensor, hr: Tensor, step: float | Tensor, arguments: _ops.Arguments, expose: bool
    ) -> tuple[Tensor, ...]:
        value, saved_gradient, stats = _forward(sr, hr, step, arguments)
        ctx.set_materialize_grads(False)
        ctx.arguments = arguments
        ctx.exposed = expose
        ctx.dtypes = (sr.dtype, hr.dtype)
        ctx.hr_strides = None
        if ctx.needs_input_grad[1] and sr.stride() != hr.stride():
            ctx.hr_strides = torch.empty_like(hr, device="meta").stride()
        # The second derivative of l1 is zero. Those of l2 and charbonnier need the images and step. An inference tensor cannot
        # be saved; only the second derivative is then an error. torch.compile does not support second derivatives.
        ctx.curved = arguments.distance != DISTANCES.index("l1") and not torch.compiler.is_compiling()
        images = (sr, hr) if ctx.curved and not (sr.is_inference() or hr.is_inference()) else ()
        ctx.save_for_backward(saved_gradient, *images)
        if images:  # a copy, because a schedule may update step in place before backward
            ctx.step = step.clone() if isinstance(step, Tensor) else step
        constant_outputs = (stats, saved_gradient) if expose else (stats,)
        ctx.mark_non_differentiable(*constant_outputs)
        return value, *constant_outputs

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 5
        saved_gradient, *images = ctx.saved_tensors
        needs_sr, needs_hr = ctx.needs_input_grad[:2]
        sr_dtype, hr_dtype = ctx.dtypes
        sr_gradient = hr_gradient = None
        # PyTorch multiplies for float64, compiled graphs (which fuse the multiplication), create_graph, a gradient per pixel, and
        # batched gradients (is_grads_batched, vectorize=True).
        if (
            grad_output.dtype == torch.float64
            or torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or grad_output.dim() > 0
            or _peek_transforms() is not None
            or _is_legacy_batched(grad_output)
        ):
            if torch.is_grad_enabled() and ctx.curved:
                gradient = _differentiable_gradient(ctx, images) * grad_output
            else:
                gradient = saved_gradient.to(grad_output.dtype) * grad_output
            sr_gradient = gradient.to(sr_dtype) if needs_sr else None
            hr_gradient = (-gradient).to(hr_dtype) if needs_hr else None
        else:
            if needs_hr:
                hr_gradient = _ops.backward(saved_gradient, grad_output, -1, hr_dtype)
            if needs_sr and sr_dtype == saved_gradient.dtype and not (ctx.exposed or _keeps_graph()):
                sr_gradient = saved_gradient
                _ops.backward_(sr_gradient, grad_output)
                torch.autograd.graph.increment_version(sr_gradient)
            elif needs_sr:
                sr_gradient = _ops.backward(saved_gradient, grad_output, 1, sr_dtype)
        if hr_gradient is not None and ctx.hr_strides is not None:  # it has the strides of sr
            hr_gradient = hr_gradient.new_empty_strided(hr_gradient.shape, ctx.hr_strides).copy_(hr_gradient)
        return sr_gradient, hr_gradient, None, None, None


# _Loss.apply without its handling of torch.func, which _check_transforms refuses: it would take a tenth of a small step.
_eager_apply = super(torch.autograd.Function, _Loss).apply


def _operator(
    sr: Tensor, hr: Tensor, step_tensor: Tensor | None, step: float, *positional: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward operator under autograd, which exported and traced programs call."""
    arguments = _ops.Arguments(*positional)
    step_argument = step if step_tensor is None else step_tensor
    is_loss = 0 <= arguments.output < len(REDUCTIONS)  # the first of OUTPUTS; the kernel refuses an unknown one
    if not (is_loss and torch.is_grad_enabled() and (sr.requires_grad or hr.requires_grad)):
        return _forward(sr, hr, step_argument, arguments)
    traced_without_gradient = arguments.gradient_dtype is None
    if traced_without_gradient:
        arguments = arguments._replace(gradient_dtype=compute_dtype(sr, hr))
    value, stats, saved_gradient = _Loss.apply(sr, hr, step_argument, arguments, True)
    return value, saved_gradient.new_empty(0) if traced_without_gradient else saved_gradient, stats


_ops.DEFINITIONS.impl("forward", _operator, "Autograd")


def _saved_dtype(sr: Tensor, hr: Tensor) -> torch.dtype:
    """The dtype of the saved gradient: ``sr``'s if each value is still rounded only once, so that its memory can become the
    gradient's.

    In float16 the attention of the first steps and the factor 1/n would underflow before ``grad_output`` multiplies them.
    """
    compute = compute_dtype(sr, hr)
    if sr.dtype == torch.float16 or compute == torch.float64 or (hr.requires_grad and sr.dtype != hr.dtype):
        return compute
    return sr.dtype


# Whether the current backward pass keeps its graph (retain_graph). Otherwise a saved tensor is not needed again, and its memory
# becomes the gradient's. A private function of torch, which torch.compile's graphs call for the same purpose; without it the
# gradient is allocated separately.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _differentiable_gradient(ctx: Any, images: list[Tensor]) -> Tensor:
    """The gradient to ``sr`` as a function of the images, on the kernel's attention map: for the second derivative."""
    if not images:
        raise RuntimeError(
            "The second derivative of the l2 and charbonnier distances needs sr and hr, but one is an inference tensor, which "
            "autograd cannot save. Pass its clone(), made outside inference mode."
        )
    sr, hr = images
    arguments: _ops.Arguments = ctx.arguments
    of_attention = _ops.Arguments(*arguments[:4], output=OUTPUTS.index("attention"))
    with torch.no_grad():
        attention = _forward(sr, hr, ctx.step, of_attention)[0]
    constants: dict[str, Any] = dict(zip(CONSTANTS, arguments.constants, strict=True))
    config = Config(**constants, distance=DISTANCES[arguments.distance], reduction=OUTPUTS[arguments.output])
    return arguments.loss_weight * reference.distance_gradient(sr, hr, attention, config)
