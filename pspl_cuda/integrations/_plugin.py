"""Code shared by the plug-ins: a missing framework, the losses of a model, and the iteration of its training."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def losses_in(owner: Any) -> list[PSPLLoss]:
    """Every PSPLLoss in a module, or in the attributes or items of ``owner`` (BasicSR's models are not modules)."""
    if isinstance(owner, nn.Module):
        return [part for part in owner.modules() if isinstance(part, PSPLLoss)]
    values = owner if isinstance(owner, tuple) else owner.values() if isinstance(owner, dict) else vars(owner).values()
    found = (losses_in(value) for value in values if isinstance(value, (nn.Module, dict)))
    return list(dict.fromkeys(loss for losses in found for loss in losses))


# The frameworks that count optimizer steps (Lightning, accelerate, transformers): the count is set before each batch. The
# micro-batches of a step then share an iteration, however many they are, and a resumed count finds its place in the schedule.


def losses_of_training(*modules: nn.Module) -> list[PSPLLoss]:
    """Every PSPLLoss in ``modules``; ValueError if there is none."""
    losses = losses_in(modules)
    if not losses:
        names = " and ".join(type(module).__name__ for module in modules)
        raise ValueError(
            f"{names} contains no PSPLLoss; expected one as an attribute, for example self.criterion = PSPLLoss() in its "
            "__init__."
        )
    return losses


def set_iteration(losses: list[PSPLLoss], optimizer_steps: int) -> None:
    """The next call of each loss belongs to iteration ``optimizer_steps + 1``."""
    for loss in losses:
        loss.iteration = optimizer_steps


# The frameworks that save the iteration and no state of their losses (the BasicSR family, KAIR).


def generator_updates(iterations: int, every: int, after: int) -> int:
    """The updates of a GAN's generator in ``iterations``: one in each multiple of ``every`` above ``after``."""
    return max(iterations // every - after // every, 0)


def register(registry: Any, loss: type[PSPLLoss]) -> None:
    """Register ``loss`` under its class name with a registry of the BasicSR family, once.

    A second import, or a reload, of a plug-in leaves the first class in place. A different loss of that name is refused by the
    registry.
    """
    if loss.__name__ in registry:
        there = registry.get(loss.__name__)
        if isinstance(there, type) and issubclass(there, PSPLLoss):
            return
    registry.register(loss)


def follow_resume(module: str, name: str) -> None:
    """Make the models of the BasicSR family advance their losses when they resume.

    ``resume_training(state)`` of the class ``name`` in ``module`` then also adds the iterations done to the ``iteration`` of the
    model's losses: ``state["iter"]``, or the updates of the generator where a GAN trains its discriminator more often.
    """
    try:
        model_class: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"PSPLLoss can't restore its iteration when training resumes, because {module}.{name} can't be imported here "
            f"({error}). Import the plug-in where docs/frameworks.md says, or set start_iteration in the loss's options.",
            stacklevel=3,
        )
        return
    resume_training = model_class.resume_training
    if hasattr(resume_training, "advances_pspl"):
        return

    @functools.wraps(resume_training)
    def resume_training_and_schedule(self, resume_state):
        resume_training(self, resume_state)
        every, after = getattr(self, "net_d_iters", 1), getattr(self, "net_d_init_iters", 0)
        for loss in losses_in(self):
            loss.iteration += generator_updates(int(resume_state["iter"]), every, after)
            logging.getLogger(module.partition(".")[0]).info("PSPLLoss continues after iteration %d.", loss.iteration)

    following: Any = resume_training_and_schedule
    following.advances_pspl = True
    model_class.resume_training = following
