"""BasicSR: ``pixel_opt: {type: PSPLLoss, loss_weight: 1.0, ...}`` with PSPLLoss's keywords as options."""

from __future__ import annotations

from .. import PSPLLoss
from ._plugin import follow_resume, needs, register

with needs(
    "BasicSR", "pip install basicsr, and see docs/troubleshooting.md if that or its import of torchvision fails"
):
    from basicsr.utils.registry import LOSS_REGISTRY

register(LOSS_REGISTRY, PSPLLoss)
follow_resume("basicsr.models.base_model", "BaseModel")
