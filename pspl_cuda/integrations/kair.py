"""KAIR: ``"G_lossfn_type": "pspl"``, with one branch in ``models/model_plain.py`` (and ``model_gan.py``)."""

from __future__ import annotations

from .. import PSPLLoss
from ._plugin import needs

with needs("KAIR", "run in the folder of its repository"):
    from utils.utils_option import find_last_checkpoint


def build(opt: dict, **keywords) -> PSPLLoss:
    """Return the loss for the options ``opt``; PSPLLoss's keywords come from ``opt["train"]["G_pspl"]`` and ``keywords``.

    KAIR weights it by ``G_lossfn_weight`` and does not save its state. Unless ``start_iteration`` is given, it continues after
    the iteration in the name of the last checkpoint, as KAIR itself does.
    """
    done, _ = find_last_checkpoint(opt["path"]["models"], net_type="G")
    return PSPLLoss(**{"start_iteration": done, **(opt["train"].get("G_pspl") or {}), **keywords})
