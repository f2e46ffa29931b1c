"""The names of torch that are private or depend on its version. No other file uses them."""

from __future__ import annotations

import torch
from torch import Tensor

# The id of the backward pass that runs on this thread, or -1. Without it, a recomputation by activation checkpointing counts as a
# call of its own.
_current_graph_task_id = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def in_backward() -> bool:
    """Whether a backward pass runs on this thread, so that what is called now recomputes a forward pass."""
    return _current_graph_task_id() != -1


def mark_static_address(tensor: Tensor) -> None:
    """Tell Inductor that ``tensor`` stays where it is: its CUDA graphs then accept that they change it in place."""
    torch._dynamo.mark_static_address(tensor)
