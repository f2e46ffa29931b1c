"""The accuracy check: loss and gradient on the images that are timed, against float64."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

import pspl_cuda

from .implementations import EPS, STEP, Implementation, Tolerance, plain

# Relative error of one rounding to nearest of a result in that dtype.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Errors(NamedTuple):
    """Relative errors; that of the gradient in the L2 norm."""

    loss: float
    gradient: float


class Expected(NamedTuple):
    loss: float
    gradient: Tensor
    """Of the sum over all pixels, so that no dtype underflows; float32, whose rounding error of 2^-24 is negligible here."""


class Oracle:
    """The float64 results for one pair of images, computed on first use for each padding and distance."""

    def __init__(self, sr: Tensor, hr: Tensor):
        self._sr, self._hr = sr.detach(), hr
        self.expected = functools.cache(self._expected)

    def _expected(self, padding: str | None, distance: str) -> Expected:
        loss, gradient = 0.0, torch.empty(self._sr.shape, dtype=torch.float32, device=self._sr.device)
        batch, channels = self._sr.shape[:2]
        # Plane by plane: channels are independent, and the reference needs about fifty times the memory of its images.
        for i in range(batch):
            for c in range(channels):
                sr = self._sr[i : i + 1, c : c + 1].double().requires_grad_()
                hr = self._hr[i : i + 1, c : c + 1].double()
                if padding is None:
                    plane = plain(sr, hr, distance).sum()
                else:
                    keywords = {"padding": padding, "distance": distance, "eps": EPS}
                    plane = pspl_cuda.pspl_loss(sr, hr, STEP, **keywords, reduction="sum", backend="reference")
                plane.backward()
                loss += plane.item()
                gradient[i, c] = sr.grad[0, 0]
        return Expected(loss / self._sr.numel(), gradient)


def measure(implementation: Implementation, sr: Tensor, hr: Tensor, oracle: Oracle) -> Errors:
    """Compare the implementation with the float64 result of its definition. ``sr.grad`` is None afterwards."""
    expected = oracle.expected(implementation.tolerance.padding, implementation.tolerance.distance)
    # float16 gradients of order 1 / n would be subnormal; training uses a GradScaler for the same reason.
    grad_output = min(sr.numel(), 2**15)
    sr.grad = None
    loss = implementation.loss(sr, hr)
    loss.backward(torch.full_like(loss, grad_output))
    difference = norm = 0.0
    for found, exact in zip(sr.grad, expected.gradient, strict=True):
        scaled = found.double() * (sr.numel() / grad_output)
        difference += (scaled - exact.double()).square().sum().item()
        norm += exact.double().square().sum().item()
    sr.grad = None
    return Errors(abs(loss.item() - expected.loss) / expected.loss, (difference / norm) ** 0.5)


def failure(tolerance: Tolerance, errors: Errors, loss_dtype: torch.dtype, grad_dtype: torch.dtype) -> str | None:
    """None if the errors are within the tolerance, else a sentence. NaN is never within it."""
    allowed = Errors(tolerance.loss + ROUNDING[loss_dtype], tolerance.gradient + ROUNDING[grad_dtype])
    for name, error, limit in zip(errors._fields, errors, allowed, strict=True):
        if not error <= limit:
            return f"not accurate: the relative error of its {name} is {error:.1e}, the tolerance {limit:.1e}"
    return None
