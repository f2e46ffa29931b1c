"""The losses that are compared: plain, PSPL, and three controls that take PSPL apart."""

from __future__ import annotations

import math
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

KINDS = ("plain", "warmup", "pspl", "scale", "attention")
# With the paper's constants attention is uniform to 1 % from this delta on: exp(-(2 / 20)^2) = 0.99.
UNIFORM_DELTA = 20
PAPER_SPAN = Fraction(UNIFORM_DELTA, 300)
SIMILARITY = "similarity"
# Below it a mean weight has lost its digits to underflow; nothing is learned then, as with PSPL.
LEAST_WEIGHT = 1e-30


class Arm(NamedTuple):
    """One loss of a comparison.

    ``span``: the part of the run after which attention is uniform to 1 %, or in which the learning rate rises.
    ``start``: Eq. 8's beta; or ``similarity``: delta is at least what gives half the peak to a pixel of the batch's mean
    similarity.
    """

    kind: str
    span: Fraction | None
    start: float | str = 0.0

    @classmethod
    def parse(cls, text: str) -> Arm:
        """``plain``, ``warmup:1/3``, ``pspl``, ``pspl:1/3``, ``pspl:1/3:0.8``, ``scale:1/3:similarity``, ...

        Raises:
            ValueError: another text.
        """
        kind, *rest = text.split(":")
        most = {"plain": 0, "warmup": 1}.get(kind, 2)
        try:
            span = None if kind == "plain" else Fraction(rest[0]) if rest else PAPER_SPAN
            start = 0.0 if len(rest) < 2 else rest[1] if rest[1] == SIMILARITY else float(rest[1])
            positive = (span is None or span > 0) and (start == SIMILARITY or 0 <= start < math.inf)
            if kind in KINDS and len(rest) <= most and positive:
                return cls(kind, span, start)
        except (ValueError, ZeroDivisionError):
            pass
        raise ValueError(
            f"{text!r} is no loss; expected 'plain', 'warmup' with a span, or pspl, scale or attention with a span and perhaps "
            "a start, as in 'pspl:1/3:0.8'."
        )

    @property
    def weighted(self) -> bool:
        """True for a loss with weights that follow Eq. 7 and 8."""
        return self.kind in ("pspl", "scale", "attention")

    def delta(self, iteration: int, iterations: int) -> float:
        """Eq. 8's delta at ``iteration`` of a run of ``iterations``, where it does not depend on the images; else NaN."""
        if not self.weighted:
            return math.nan
        beta = 0.0 if self.start == SIMILARITY else self.start
        return UNIFORM_DELTA * iteration / float(self.span * iterations) + beta

    def rate(self, iteration: int, iterations: int) -> float:
        """The factor on the learning rate."""
        return min(1.0, iteration / float(self.span * iterations)) if self.kind == "warmup" else 1.0


def final(outputs: Tensor | list[Tensor]) -> Tensor:
    """The full-size output of a network."""
    return outputs[-1] if isinstance(outputs, (list, tuple)) else outputs


# Of a training batch: the loss, the unweighted L1 and squared error, PSPL's mean similarity and attention, its delta.
MEASURES = ("loss", "l1", "mse", "similarity", "attention", "delta")


class Criterion:
    """The loss of one arm. The schedule follows from the iteration alone, as the batch does."""

    def __init__(self, arm: Arm, distance: str, iterations: int):
        self.arm = arm
        self.distance = distance
        self.iterations = iterations

    def __call__(self, outputs: Tensor | list[Tensor], hr: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """The loss, summed over the outputs of a network that has several, and MEASURES of the full-size output.

        A smaller output is compared with the shrunken HR image, as in LapSRN's paper.
        """
        delta = self.arm.delta(iteration, self.iterations)
        outputs = [sr.float() for sr in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
        targets = [hr if sr.shape == hr.shape else shrink(hr, hr.shape[-1] // sr.shape[-1]) for sr in outputs]
        terms = [self._term(sr, target, delta) for sr, target in zip(outputs, targets, strict=True)]
        loss = sum(term for term, _ in terms)
        return loss, torch.stack([loss.detach(), *terms[-1][1]])

    def _term(self, sr: Tensor, hr: Tensor, delta: float) -> tuple[Tensor, list[Tensor]]:
        """The loss of one output and its measures, from ``l1`` to ``delta``."""
        if not self.arm.weighted:
            difference = sr.detach() - hr
            nothing = [torch.full((), math.nan, device=hr.device)] * 3
            return PLAIN[self.distance](sr, hr), [difference.abs().mean(), difference.square().mean(), *nothing]
        if self.arm.start == SIMILARITY:
            delta = self._at_least_half(sr, hr, delta)
        # With alpha = 1 and beta = 0 the step is delta.
        loss, stats = pspl_loss(sr, hr, delta, distance=self.distance, eps=EPS, return_stats=True)
        measures = [stats.mean_abs_error, stats.mean_squared_error, stats.mean_similarity, stats.mean_attention]
        measures.append(torch.as_tensor(delta, dtype=loss.dtype, device=loss.device))
        if self.arm.kind == "pspl":
            return loss, measures
        weight = attention_map(sr.detach(), hr, delta).pow(EXPONENT[self.distance]).mean()
        if self.arm.kind == "scale":
            return weight * PLAIN[self.distance](sr, hr), measures
        return loss / weight.clamp(min=LEAST_WEIGHT), measures

    def _at_least_half(self, sr: Tensor, hr: Tensor, delta: float) -> Tensor:
        _, stats = pspl_loss(sr.detach(), hr, delta, distance=self.distance, eps=EPS, return_stats=True)
        return ((stats.mean_similarity + 1) / math.sqrt(math.log(2))).clamp(min=delta)
