"""The plain losses and PSPL behind one call, for one output or several."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from networks.bicubic import shrink
from pspl_cuda import PSPLLoss, PSPLStats

from .images import final

EPS = 1e-3  # of Charbonnier, in a range of 0..1: LapSRN's paper, and the default of PSPLLoss


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of ``sqrt(d^2 + eps^2)``."""
    return ((sr - hr).square() + EPS**2).sqrt().mean()


PLAIN = {"l1": F.l1_loss, "l2": F.mse_loss, "charbonnier": charbonnier}


class Criterion(nn.Module):
    """``forward(outputs, hr)`` -> the loss, summed over the outputs of a network that has several.

    ``stats`` is then what PSPL summed on the way, of the full-size output; None for a plain loss. A smaller output is held
    against the shrunken HR image, as LapSRN's paper does.
    """

    def __init__(self, loss: str, distance: str, iterations_per_step: float):
        super().__init__()
        self.plain = PLAIN.get(loss)
        self.pspl = (
            PSPLLoss(distance=distance, eps=EPS, iterations_per_step=iterations_per_step, return_stats=True)
            if self.plain is None
            else None
        )
        self.stats: PSPLStats | None = None

    @property
    def step(self) -> float:
        """Eq. 8's step; NaN for a plain loss, which has none."""
        return self.pspl.step if self.pspl is not None else float("nan")

    def forward(self, outputs: Tensor | list[Tensor], hr: Tensor) -> Tensor:
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        targets = [hr if sr.shape == hr.shape else shrink(hr, hr.shape[-1] // sr.shape[-1]) for sr in outputs]
        if self.pspl is None:
            return sum(self.plain(sr.float(), target) for sr, target in zip(outputs, targets, strict=True))
        loss, stats = self.pspl(list(outputs), targets)
        self.stats = stats[-1]
        return loss

    @torch.no_grad()
    def measures(self, loss: Tensor, outputs: Tensor | list[Tensor], hr: Tensor) -> Tensor:
        """MEASURES of the last call, on the device: nothing is waited for."""
        if self.stats is not None:
            stats = self.stats
            values = [stats.mean_abs_error, stats.mean_squared_error, stats.mean_similarity, stats.mean_attention]
        else:
            difference = final(outputs).float() - hr
            nothing = torch.full((), float("nan"), device=hr.device)
            values = [difference.abs().mean(), difference.square().mean(), nothing, nothing]
        return torch.stack([loss.detach().float(), *(value.float() for value in values)])


# Of a training batch: the loss, the unweighted L1 and squared error, and PSPL's mean similarity and attention.
MEASURES = ("loss", "l1", "mse", "similarity", "attention")
