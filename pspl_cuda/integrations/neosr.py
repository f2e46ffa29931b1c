"""neosr: ``[train.pixel_opt]`` with ``type = "PSPLLoss"`` and PSPLLoss's keywords as options."""

from __future__ import annotations

from .. import PSPLLoss
from ._plugin import follow_resume, needs, register

with needs("neosr", "run in the folder of its repository, or install it from there"):
    from neosr.utils.registry import LOSS_REGISTRY

register(LOSS_REGISTRY, PSPLLoss)
follow_resume("neosr.models.base", "base")
