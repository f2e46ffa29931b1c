"""accelerate: an object that sets a PSPLLoss to the optimizer steps done, stepped after each batch as a scheduler."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._plugin import losses_of_training, set_iteration


class PSPLSchedule:
    """Counts the batches after which ``accelerator`` steps the optimizer, and sets every PSPLLoss to that count.

    Call ``step()`` after ``optimizer.step()``, at every batch. The micro-batches of one optimizer step share an iteration, also
    where the last step of an epoch has fewer of them. ``calls_per_iteration`` of the loss is then its number of calls per batch.
    Register the object for checkpointing to save and restore the count. The count begins at the ``iteration`` of the first loss.

    Args:
        accelerator: the ``accelerate.Accelerator`` of the training.
        modules: the loss, or modules that contain it.

    Raises:
        ValueError: the modules contain no PSPLLoss.
    """

    def __init__(self, accelerator: Any, *modules: nn.Module) -> None:
        self.accelerator = accelerator
        self.losses = losses_of_training(*modules)
        self.iteration = self.losses[0].iteration

    def step(self) -> None:
        """One batch is done."""
        self.iteration += bool(self.accelerator.sync_gradients)
        set_iteration(self.losses, self.iteration)

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.iteration = state["iteration"]
        set_iteration(self.losses, self.iteration)
