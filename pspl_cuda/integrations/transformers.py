"""transformers: a callback of ``Trainer`` that sets a PSPLLoss to the trainer's step."""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import PSPLLoss
from ._plugin import losses_of_training, needs, set_iteration

with needs("transformers", "pip install transformers"):
    from transformers import TrainerCallback


class PSPLSchedule(TrainerCallback):
    """Before each batch, every PSPLLoss in the model and in ``modules`` is set to the optimizer steps done.

    The micro-batches of one optimizer step share an iteration, also where the last step of an epoch has fewer of them, and a
    resumed trainer continues its count. ``calls_per_iteration`` of the loss is then its number of calls per batch, and
    ``start_iteration`` is not used.

    Args:
        modules: the loss, or modules that contain it, where the model does not.

    Raises:
        ValueError: neither the model nor ``modules`` contain a PSPLLoss when training starts.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.losses: list[PSPLLoss] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **unused: Any) -> None:
        self.losses = losses_of_training(model, *self.modules)

    def on_step_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        set_iteration(self.losses, state.global_step)

    # After a micro-batch that is not the last of its step.
    on_substep_end = on_step_begin
