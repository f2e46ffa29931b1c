"""The loss as an autograd node around the operators.

The forward pass writes the weighted residual, which is the gradient before the factor upstream / n; the backward pass is one
scaling of it. A ``torch.autograd.Function`` outside the operators costs about 10 us less per training step than
``torch.library.register_autograd`` inside them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import ops
from .config import Config
from .reference import weighted_distance


def _split(step: float | Tensor) -> tuple[Tensor | None, float]:
    """The operators take a step as a tensor or as a number: ``(tensor, _)`` or ``(None, number)``."""
    return (step, 0.0) if isinstance(step, Tensor) else (None, step)


def similarity(sr: Tensor, hr: Tensor, config: Config) -> Tensor:
    """M_s of Eq. 3 by the fused kernel of the images' device."""
    attention = ops.attention_arguments(config)
    kind = ops.MAP_KINDS.index("similarity")
    return torch.ops.pspl_cuda.map(sr, hr, None, 0.0, *attention, *ops.similarity_arguments(config), kind)


def attention(sr: Tensor, hr: Tensor, step: float | Tensor, config: Config) -> Tensor:
    """M_a of Eq. 6 by the fused kernel of the images' device."""
    arguments = (*ops.attention_arguments(config), *ops.similarity_arguments(config))
    return torch.ops.pspl_cuda.map(sr, hr, *_split(step), *arguments, ops.MAP_KINDS.index("attention"))


def loss(sr: Tensor, hr: Tensor, step: float | Tensor, config: Config, with_stats: bool) -> tuple[Tensor, Tensor]:
    """The loss (0-dim, or per pixel for reduction "none") and the statistics ([4], or empty) by the fused kernel."""
    if not torch.compiler.is_compiling() and (_is_dual(sr) or _is_dual(hr)):
        raise RuntimeError(
            'the fused loss has no forward-mode derivative (torch.func.jvp, dual tensors); expected backend="reference".'
        )
    if torch.is_grad_enabled() and (sr.requires_grad or hr.requires_grad):
        return _Loss.apply(sr, hr, step, config, with_stats)
    value, _, stats = _forward(sr, hr, step, config, False, with_stats)
    return value, stats


def _is_dual(image: Tensor) -> bool:
    # Torch would take the operator for a constant, and give a derivative of zero.
    return unpack_dual(image).tangent is not None


def _forward(sr, hr, step, config, with_residual, with_stats):
    return torch.ops.pspl_cuda.loss(
        sr,
        hr,
        *_split(step),
        *ops.attention_arguments(config),
        *ops.similarity_arguments(config),
        *ops.distance_arguments(config),
        with_residual,
        with_stats,
    )


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sr, hr, step, config, with_stats):
        value, residual, stats = _forward(sr, hr, step, config, True, with_stats)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        ctx.config = config
        ctx.dtypes = (sr.dtype, hr.dtype)
        ctx.hr_strides = None if sr.stride() == hr.stride() else torch.empty_like(hr, device="meta").stride()
        # The second derivative of l1 is zero. The others need images and step again, as F.mse_loss does its images; an inference
        # tensor can't be saved, which matters only to who asks for that derivative. torch.compile never does.
        ctx.curved = config.distance != "l1" and not torch.compiler.is_compiling()
        if ctx.curved and not (sr.is_inference() or hr.is_inference()):
            ctx.save_for_backward(residual, sr, hr)
            # A copy: a schedule is advanced in place, perhaps before backward.
            ctx.step = step.clone() if isinstance(step, Tensor) else step
        else:
            ctx.save_for_backward(residual)
        return value, stats

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:
            return None, None, None, None, None
        residual, *saved = ctx.saved_tensors
        # create_graph=True: autograd must be able to differentiate what happens here.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if differentiable and ctx.curved:
            gradients = _curved_gradients(ctx, saved, upstream)
        else:
            factor = 1.0 / residual.numel() if ctx.config.reduction == "mean" else 1.0
            fused = upstream.dim() == 0 and not differentiable
            scale = torch.ops.pspl_cuda.scale if fused else _scale
            gradients = [None, None]
            if ctx.needs_input_grad[1]:
                gradients[1] = _with_strides(scale(residual, upstream, -factor, ctx.dtypes[1]), ctx)
            if ctx.needs_input_grad[0]:
                if fused and ctx.dtypes[0] == residual.dtype and _is_last_walk():
                    torch.ops.pspl_cuda.scale_(residual, upstream, factor)
                    gradients[0] = residual
                else:
                    gradients[0] = scale(residual, upstream, factor, ctx.dtypes[0])
        return *gradients, None, None, None


# Torch's own compiled graphs ask the same before they give a saved tensor's memory away. Without it the gradient gets memory of
# its own.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _is_last_walk() -> bool:
    """Whether nobody will ask for the residual again: backward without ``retain_graph``. Its memory becomes the gradient's."""
    return not torch.compiler.is_compiling() and not _keeps_graph()


def _scale(residual: Tensor, upstream: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """What the scale operator does, in PyTorch: for a gradient per pixel, and differentiable by ``upstream``."""
    return (residual * (upstream * factor)).to(dtype)


def _with_strides(gradient: Tensor, ctx) -> Tensor:
    """The residual has the layout of sr; the gradient of hr shall have the layout of hr."""
    if ctx.hr_strides is None:
        return gradient
    shaped = torch.empty_strided(gradient.shape, ctx.hr_strides, dtype=gradient.dtype, device=gradient.device)
    return shaped.copy_(gradient)


def _curved_gradients(ctx, saved: list[Tensor], upstream: Tensor) -> list[Tensor | None]:
    """Gradients that can be differentiated again: the distance of Eq. 10 in PyTorch, on the kernel's attention map."""
    if not saved:
        raise RuntimeError(
            f"the second derivative of distance {ctx.config.distance!r} needs sr and hr, but one is an inference tensor, which "
            "autograd can't save. Pass its clone(), made outside inference mode."
        )
    sr, hr = saved
    with torch.no_grad():
        weight = attention(sr, hr, ctx.step, ctx.config)
    value = weighted_distance(sr, hr, weight, ctx.config)
    wanted = [image for image, needed in zip((sr, hr), ctx.needs_input_grad[:2], strict=True) if needed]
    gradients = iter(torch.autograd.grad(value, wanted, upstream, create_graph=True))
    return [next(gradients) if needed else None for needed in ctx.needs_input_grad[:2]]
