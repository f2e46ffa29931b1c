"""traiNNer-redux: ``losses: [{type: PSPLLoss, loss_weight: 1.0, ...}]`` with PSPLLoss's keywords as options."""

from __future__ import annotations

import torch

from .. import PSPLLoss as Weighted
from ._plugin import follow_resume, needs, register

with needs("traiNNer-redux", "run in the folder of its repository, or install it from there"):
    from traiNNer.losses.basic_loss import L1Loss
    from traiNNer.utils.registry import LOSS_REGISTRY


class PSPLLoss(Weighted):
    """For the versions whose training loop multiplies by ``abs(loss_weight)``; its sign selects the target there."""

    @property
    def _applied_weight(self) -> float:
        return 1.0


def losses_apply_their_weight() -> bool:
    """Whether this version's losses multiply by ``loss_weight``, as they did before 58088e1c (May 2025), or leave it to the loop.

    No attribute or signature tells the two apart, so the framework's own L1Loss is asked for the loss of 0 and 1.
    """
    return L1Loss(loss_weight=2.0)(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item() == 2


register(LOSS_REGISTRY, Weighted if losses_apply_their_weight() else PSPLLoss)
follow_resume("traiNNer.models.base_model", "BaseModel")
