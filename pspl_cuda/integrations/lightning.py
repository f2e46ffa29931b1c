"""Lightning: a callback that sets every PSPLLoss of a LightningModule to the trainer's step."""

from __future__ import annotations

from typing import Any

from .. import PSPLLoss
from ..config import check_count
from ._plugin import losses_of_training, needs, set_iteration

with needs("Lightning", "pip install lightning"):
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback


class PSPLSchedule(Callback):
    """Before each batch, every PSPLLoss in the module is set to the optimizer steps done.

    The micro-batches of one optimizer step share an iteration, also where the last step of an epoch has fewer of them, and a
    resumed trainer continues its count. ``calls_per_iteration`` of the loss is then its number of calls per batch, and
    ``start_iteration`` is not used.

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
        self.losses: list[PSPLLoss] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.losses = losses_of_training(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        set_iteration(self.losses, trainer.global_step // self.optimizer_steps_per_iteration)
