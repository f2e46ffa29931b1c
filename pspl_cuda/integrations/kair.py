"""KAIR: ``"G_lossfn_type": "pspl"``, with one branch in ``models/model_plain.py`` (and ``model_gan.py``)."""

from __future__ import annotations

from .. import PSPLLoss
from ._plugin import generator_updates, needs

with needs("KAIR", "run in the folder of its repository"):
    from utils.utils_option import find_last_checkpoint


def build(opt: dict, **keywords) -> PSPLLoss:
    """Return the loss for the options ``opt``; PSPLLoss's keywords come from ``opt["train"]["G_pspl"]`` and ``keywords``.

    KAIR weights it by ``G_lossfn_weight`` and does not save its state. It continues after ``start_iteration`` and the iteration
    in the name of the last checkpoint, as KAIR itself does. ``model_gan.py`` calls it only in the iterations that update the
    generator.
    """
    train = opt["train"]
    loss = PSPLLoss(**{**(train.get("G_pspl") or {}), **keywords})
    done, _ = find_last_checkpoint(opt["path"]["models"], net_type="G")
    if opt["model"] == "gan":
        done = generator_updates(done, train.get("D_update_ratio") or 1, train.get("D_init_iters") or 0)
    loss.iteration += done
    return loss
