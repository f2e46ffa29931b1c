"""MMagic, and other packages based on MMEngine: ``pixel_loss=dict(type='PSPLLoss', loss_weight=1.0, ...)``.

The loss is part of the model: its count is in the model's checkpoints.
"""

from __future__ import annotations

from .. import PSPLLoss
from ._plugin import needs

with needs("MMEngine", "pip install mmengine (mmagic brings it)"):
    from mmengine.registry import MODELS

# MMEngine's root registry: the registries of mmagic and all other OpenMMLab packages fall back to it.
if MODELS.module_dict.get("PSPLLoss") is not PSPLLoss:
    MODELS.register_module(module=PSPLLoss)
