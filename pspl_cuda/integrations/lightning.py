"""Lightning: a callback that sets every PSPLLoss of a LightningModule to the trainer's step."""

from __future__ import annotations

from .. import PSPLLoss
from ..config import check_count
from ._plugin import needs

with needs("Lightning", "pip install lightning"):
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback


class PSPLSchedule(Callback):
    """Before each training batch, every PSPLLoss in the module is set to the iterations that the trainer has done.

    The trainer counts optimizer steps: micro-batches of one step share an iteration, also where the last step of an epoch
    has fewer of them, and a resumed trainer continues its count. ``calls_per_iteration`` of the loss is then its number of calls
    per batch, and ``start_iteration`` is not used.

    Args:
        optimizer_steps_per_iteration: optimizer steps per batch: 2 for a GAN with two optimizers, because the trainer counts
            the steps of both.

    Raises:
        TypeError, ValueError: ``optimizer_steps_per_iteration`` is not an integer of at least 1, or the module contains no
            PSPLLoss when training starts.
    """

    def __init__(self, optimizer_steps_per_iteration: int = 1) -> None:
        self.optimizer_steps_per_iteration = check_count(
            "optimizer_steps_per_iteration", optimizer_steps_per_iteration, least=1
        )

    def on_train_start(self, trainer, pl_module) -> None:
        if not _losses(pl_module):
            raise ValueError(
                f"{type(pl_module).__name__} contains no PSPLLoss; expected one as an attribute, for example "
                "self.criterion = PSPLLoss() in its __init__."
            )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        for loss in _losses(pl_module):
            loss.iteration = trainer.global_step // self.optimizer_steps_per_iteration


def _losses(module) -> list[PSPLLoss]:
    return [part for part in module.modules() if isinstance(part, PSPLLoss)]
