"""What the plug-ins share. They know their framework; this module knows none."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import nn

from .. import PSPLLoss


@contextmanager
def needs(framework: str, remedy: str) -> Iterator[None]:
    """Around a plug-in's import of its framework: say in one sentence what is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"This plug-in needs {framework}, which can't be imported ({error}): {remedy}. "
            "The loss itself works without it: from pspl_cuda import PSPLLoss."
        ) from error


def register(registry, loss: type[PSPLLoss]) -> None:
    """Register ``loss`` under its class name with a registry of the BasicSR family, once.

    A second import, or a reload, of a plug-in leaves the first class in place; a loss of that name which is not ours is the
    registry's to refuse.
    """
    if loss.__name__ in registry:
        there = registry.get(loss.__name__)
        if isinstance(there, type) and issubclass(there, PSPLLoss):
            return
    registry.register(loss)


class ResumingLoss(PSPLLoss):
    """PSPLLoss for BasicSR and its descendants, which save no state of their losses.

    Their models get ``state["iter"]`` back in ``resume_training(state)``: from the first loss built on, this also sets the
    ``iteration`` of the model's losses. An explicit ``start_iteration`` above 0 is left alone.
    """

    # Module and class whose resume_training it is. Imported by the first loss, not by the plug-in: a plug-in may be imported
    # by the framework while its models are still to come.
    model_class: ClassVar[tuple[str, str]]

    def __init__(self, **keywords) -> None:
        super().__init__(**keywords)
        module, name = self.model_class
        try:
            _follow_resume(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError) as error:
            warnings.warn(
                f"PSPLLoss can't follow a resumed training here ({error}): set start_iteration in its options by hand.",
                stacklevel=2,
            )


def _follow_resume(model_class: type) -> None:
    resume_training = model_class.resume_training
    if hasattr(resume_training, "sets_pspl_iteration"):
        return

    @functools.wraps(resume_training)
    def resume_training_and_schedule(self, resume_state):
        resume_training(self, resume_state)
        log = logging.getLogger(model_class.__module__.partition(".")[0])
        for loss in _losses(vars(self).values()):
            if loss.iteration == 0:
                loss.iteration = int(resume_state["iter"])
            log.info("PSPLLoss goes on after iteration %d.", loss.iteration)

    resume_training_and_schedule.sets_pspl_iteration = True
    model_class.resume_training = resume_training_and_schedule


def _losses(attributes) -> Iterator[PSPLLoss]:
    # Losses are attributes of these models, or in a dictionary, or wrapped by torch.compile.
    for value in attributes:
        for module in value.values() if isinstance(value, dict) else (value,):
            if isinstance(module, nn.Module):
                yield from (part for part in module.modules() if isinstance(part, PSPLLoss))
