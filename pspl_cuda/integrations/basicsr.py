"""BasicSR: ``pixel_opt: {type: PSPLLoss, loss_weight: 1.0, ...}`` with PSPLLoss's keywords as options."""

from __future__ import annotations

from ._plugin import ResumingLoss, needs, register

with needs(
    "BasicSR", "pip install basicsr, and see docs/troubleshooting.md if that or its import of torchvision fails"
):
    from basicsr.utils.registry import LOSS_REGISTRY


class PSPLLoss(ResumingLoss):
    """Applies ``loss_weight`` itself, as all losses of BasicSR."""

    model_class = ("basicsr.models.base_model", "BaseModel")


register(LOSS_REGISTRY, PSPLLoss)
