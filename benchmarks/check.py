"""Correctness, before any speed: loss and gradient on the very images that are timed, against float64."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

import pspl_cuda

from .implementations import STEP, Claim, Implementation

# One rounding to nearest in a result of that dtype, relative.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Errors(NamedTuple):
    loss: float
    """Relative."""
    gradient: float
    """Relative, in the L2 norm."""


class Exact(NamedTuple):
    loss: float
    gradient: Tensor
    """Of the sum over all pixels, so that no dtype underflows; float32, whose own rounding is 2^-24."""


class Oracle:
    """The float64 results for one pair of images, each definition computed when it is first asked for."""

    def __init__(self, sr: Tensor, hr: Tensor):
        self._sr, self._hr = sr.detach(), hr
        self.exact = functools.cache(self._exact)

    def _exact(self, padding: str | None) -> Exact:
        loss, gradient = 0.0, torch.empty(self._sr.shape, dtype=torch.float32, device=self._sr.device)
        batch, channels = self._sr.shape[:2]
        # Plane by plane: channels do not mix, and the reference needs some fifty times the memory of its images.
        for i in range(batch):
            for c in range(channels):
                sr = self._sr[i : i + 1, c : c + 1].double().requires_grad_()
                hr = self._hr[i : i + 1, c : c + 1].double()
                if padding is None:
                    plane = (sr - hr).abs().sum()
                else:
                    plane = pspl_cuda.pspl_loss(sr, hr, STEP, padding=padding, reduction="sum", backend="reference")
                plane.backward()
                loss += plane.item()
                gradient[i, c] = sr.grad[0, 0]
        return Exact(loss / self._sr.numel(), gradient)


def errors(implementation: Implementation, sr: Tensor, hr: Tensor, oracle: Oracle) -> Errors:
    """How far the implementation is from the float64 result of what it claims to compute. Leaves no gradient behind."""
    exact = oracle.exact(implementation.claim.padding)
    # A gradient of order 1 / n would be subnormal in float16, as it would without a GradScaler.
    upstream = min(sr.numel(), 2**15)
    sr.grad = None
    loss = implementation.loss(sr, hr)
    loss.backward(torch.full_like(loss, upstream))
    difference = norm = 0.0
    for found, expected in zip(sr.grad, exact.gradient, strict=True):
        scaled = found.double() * (sr.numel() / upstream)
        difference += (scaled - expected.double()).square().sum().item()
        norm += expected.double().square().sum().item()
    sr.grad = None
    return Errors(abs(loss.item() - exact.loss) / exact.loss, (difference / norm) ** 0.5)


def refusal(claim: Claim, found: Errors, loss_dtype: torch.dtype, gradient_dtype: torch.dtype) -> str | None:
    """Why no speed is shown for who is that far off; None if the claim holds. NaN never holds."""
    allowed = Errors(claim.loss + ROUNDING[loss_dtype], claim.gradient + ROUNDING[gradient_dtype])
    for what, error, limit in zip(found._fields, found, allowed, strict=True):
        if not error <= limit:
            return f"not correct: its {what} is off by {error:.1e}, relative, and what it claims allows {limit:.1e}"
    return None
