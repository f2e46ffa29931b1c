"""The losses that are compared: plain, PSPL, and two controls that take PSPL apart."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

from networks.bicubic import shrink
from pspl_cuda import attention_map, pspl_loss

EPS = 1e-3  # of Charbonnier, in a range of 0..1: LapSRN's paper, and the default of PSPLLoss


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of ``sqrt(d^2 + eps^2)``."""
    return ((sr - hr).square() + EPS**2).sqrt().mean()


PLAIN = {"l1": F.l1_loss, "l2": F.mse_loss, "charbonnier": charbonnier}
# Attention multiplies both images (Eq. 10), so the squared difference gets its square. Charbonnier: well above eps.
EXPONENT = {"l1": 1, "l2": 2, "charbonnier": 1}

KINDS = ("plain", "pspl", "scale", "attention")
# With the paper's constants attention is uniform to 1 % from this step on: exp(-(2 / 20)^2) = 0.99.
UNIFORM_STEP = 20
PAPER_SPAN = Fraction(UNIFORM_STEP, 300)
# Below it a mean weight has lost its digits to underflow; nothing is learned then, as with PSPL.
LEAST_WEIGHT = 1e-30


class Arm(NamedTuple):
    """One loss of a comparison. ``span``: the part of the run after which attention is uniform to 1 %."""

    kind: str
    span: Fraction | None

    @classmethod
    def parse(cls, text: str) -> Arm:
        """``plain``, ``pspl``, ``pspl:1/3``, ``scale:0.1``, ...

        Raises:
            ValueError: another text.
        """
        kind, colon, span = text.partition(":")
        try:
            arm = cls(kind, None if kind == "plain" else Fraction(span) if colon else PAPER_SPAN)
            if kind in KINDS and bool(colon) <= (arm.span is not None) and (arm.span is None or arm.span > 0):
                return arm
        except (ValueError, ZeroDivisionError):
            pass
        raise ValueError(
            f"{text!r} is no loss; expected 'plain', or pspl, scale or attention with a span, as in 'pspl:1/3'."
        )

    def step(self, iteration: int, iterations: int) -> float:
        """Eq. 8's step at ``iteration`` of a run of ``iterations``; NaN for the plain loss, which has none."""
        return float("nan") if self.span is None else UNIFORM_STEP * iteration / float(self.span * iterations)


def final(outputs: Tensor | list[Tensor]) -> Tensor:
    """The full-size output of a network."""
    return outputs[-1] if isinstance(outputs, (list, tuple)) else outputs


# Of a training batch: the loss, the unweighted L1 and squared error, PSPL's mean similarity and attention, its step.
MEASURES = ("loss", "l1", "mse", "similarity", "attention", "step")


class Criterion:
    """The loss of one arm. The step follows from the iteration alone, as the batch does."""

    def __init__(self, arm: Arm, distance: str, iterations: int):
        self.arm = arm
        self.distance = distance
        self.iterations = iterations

    def __call__(self, outputs: Tensor | list[Tensor], hr: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """The loss, summed over the outputs of a network that has several, and MEASURES of the full-size output.

        A smaller output is compared with the shrunken HR image, as in LapSRN's paper.
        """
        step = self.arm.step(iteration, self.iterations)
        outputs = [sr.float() for sr in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
        targets = [hr if sr.shape == hr.shape else shrink(hr, hr.shape[-1] // sr.shape[-1]) for sr in outputs]
        terms = [self._term(sr, target, step) for sr, target in zip(outputs, targets, strict=True)]
        loss = sum(term for term, _ in terms)
        return loss, torch.stack([loss.detach(), *terms[-1][1], torch.full_like(loss, step).detach()])

    def _term(self, sr: Tensor, hr: Tensor, step: float) -> tuple[Tensor, list[Tensor]]:
        if self.arm.kind == "plain":
            difference = sr.detach() - hr
            nothing = torch.full((), float("nan"), device=hr.device)
            return PLAIN[self.distance](sr, hr), [difference.abs().mean(), difference.square().mean(), nothing, nothing]
        loss, stats = pspl_loss(sr, hr, step, distance=self.distance, eps=EPS, return_stats=True)
        measures = [stats.mean_abs_error, stats.mean_squared_error, stats.mean_similarity, stats.mean_attention]
        if self.arm.kind == "pspl":
            return loss, measures
        weight = attention_map(sr.detach(), hr, step).pow(EXPONENT[self.distance]).mean()
        if self.arm.kind == "scale":
            return weight * PLAIN[self.distance](sr, hr), measures
        return loss / weight.clamp(min=LEAST_WEIGHT), measures
