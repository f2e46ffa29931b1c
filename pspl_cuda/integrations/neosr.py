"""neosr: ``[train.pixel_opt]`` with ``type = "PSPLLoss"`` and PSPLLoss's keywords as options."""

from __future__ import annotations

from ._plugin import ResumingLoss, needs, register

with needs("neosr", "run in the folder of its repository, or install it from there"):
    from neosr.utils.registry import LOSS_REGISTRY


class PSPLLoss(ResumingLoss):
    """Applies ``loss_weight`` itself, as all losses of neosr."""

    model_class = ("neosr.models.base", "base")


register(LOSS_REGISTRY, PSPLLoss)
