"""Framework-independent code shared by the plug-ins."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from .. import PSPLLoss


@contextmanager
def needs(framework: str, remedy: str) -> Iterator[None]:
    """Wraps a plug-in's import of its framework, to name what is missing if the import fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"This plug-in needs {framework}, which can't be imported ({error}): {remedy}. "
            "The loss itself works without it: from pspl_cuda import PSPLLoss."
        ) from error


def register(registry, loss: type[PSPLLoss]) -> None:
    """Register ``loss`` under its class name with a registry of the BasicSR family, once.

    A second import, or a reload, of a plug-in leaves the first class in place. A different loss of that name is refused by the
    registry.
    """
    if loss.__name__ in registry:
        there = registry.get(loss.__name__)
        if isinstance(there, type) and issubclass(there, PSPLLoss):
            return
    registry.register(loss)


class ResumingLoss(PSPLLoss):
    """PSPLLoss for BasicSR and its descendants, which do not save the state of their losses.

    Their models receive ``state["iter"]`` in ``resume_training(state)``. Once the first loss is built, that method also sets the
    ``iteration`` of the model's losses, except where ``start_iteration`` is above 0.
    """

    # The module and class that define resume_training. Imported by the first loss and not by the plug-in, which the framework may
    # import before its models exist.
    model_class: ClassVar[tuple[str, str]]

    def __init__(self, **keywords) -> None:
        super().__init__(**keywords)
        module, name = self.model_class
        try:
            _follow_resume(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError) as error:
            warnings.warn(
                f"PSPLLoss can't restore its iteration when training resumes ({error}): set start_iteration in its options.",
                stacklevel=2,
            )


def _follow_resume(model_class: Any) -> None:
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
            log.info("PSPLLoss continues after iteration %d.", loss.iteration)

    following: Any = resume_training_and_schedule
    following.sets_pspl_iteration = True
    model_class.resume_training = following


def _losses(attributes) -> Iterator[PSPLLoss]:
    # Losses are attributes of these models, or in a dictionary, or wrapped by torch.compile.
    for value in attributes:
        for module in value.values() if isinstance(value, dict) else (value,):
            if isinstance(module, nn.Module):
                yield from (part for part in module.modules() if isinstance(part, PSPLLoss))
