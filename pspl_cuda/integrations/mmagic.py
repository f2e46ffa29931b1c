"""MMagic, and everything else on MMEngine: ``pixel_loss=dict(type='PSPLLoss', loss_weight=1.0, ...)``.

The loss is part of the model: its count is in the model's checkpoints.
"""

from __future__ import annotations

from .. import PSPLLoss
from ._plugin import needs

with needs("MMEngine", "pip install mmengine (mmagic brings it)"):
    from mmengine.registry import MODELS

# MMEngine's root registry: those of mmagic and of all other OpenMMLab packages look there for what they lack.
if MODELS.module_dict.get("PSPLLoss") is not PSPLLoss:
    MODELS.register_module(module=PSPLLoss)
