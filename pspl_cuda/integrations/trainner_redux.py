"""traiNNer-redux: ``losses: [{type: PSPLLoss, loss_weight: 1.0, ...}]`` with PSPLLoss's keywords as options."""

from __future__ import annotations

import torch

from ._plugin import ResumingLoss, needs, register

with needs("traiNNer-redux", "run in the folder of its repository, or install it from there"):
    from traiNNer.utils.registry import LOSS_REGISTRY


class PSPLLoss(ResumingLoss):
    """Leaves ``loss_weight`` to the training loop: its magnitude is the factor, and its sign selects the target."""

    model_class = ("traiNNer.models.base_model", "BaseModel")

    def __init__(self, **keywords) -> None:
        super().__init__(**keywords)
        # Earlier versions of the framework apply the weight in the losses, later ones in the loop. Its L1Loss shows which.
        black, white = torch.zeros(1, 1, 1, 1, device="cpu"), torch.ones(1, 1, 1, 1, device="cpu")
        self.weighted_by_loop = LOSS_REGISTRY.get("L1Loss")(loss_weight=2.0)(black, white).item() == 1

    @property
    def _applied_weight(self) -> float:
        return 1.0 if self.weighted_by_loop else self.loss_weight


register(LOSS_REGISTRY, PSPLLoss)
