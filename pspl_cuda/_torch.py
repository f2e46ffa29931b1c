"""The names of torch that are private or depend on its version. No other file uses them, and tests/unit/test_torch.py tests that
each exists."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor
from torch.autograd import forward_ad

# Excludes the autograd keys from the dispatch of what is called inside: the Autograd kernel of an operator calls the operator
# itself, and must reach the kernel of the device. torch.library.custom_op uses it too; its wrappers take about 10 us of a call.
below_autograd: Any = torch._C._AutoDispatchBelowAutograd

# The id of the backward pass that runs on this thread, or -1. Without it, a recomputation by activation checkpointing counts as a
# call of its own.
_current_graph_task_id = getattr(torch._C, "_current_graph_task_id", lambda: -1)

# Whether the backward pass that runs keeps its graph (retain_graph). torch.compile's own graphs ask for the same purpose. Without
# it (torch 2.4), no saved tensor is changed, and the gradient is allocated separately.
keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)

# The hooks that pack what autograd saves, or None. Before torch 2.8 they are unknown: a hook that keeps the saved gradient then
# sees it change, as its version counter tells.
_saved_tensor_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: None)

# The innermost of torch.func's transforms, or None. Without it, torch's own errors remain.
_peek_transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
# Whether a tensor is batched by the vmap of is_grads_batched. Without it, torch's own errors remain.
_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: False)

# Whether torch.export makes a program. Without it (before torch 2.7), exported programs are like compiled code: a PSPLLoss in one
# counts, and AOTInductor refuses return_stats=True.
_knows_exporting = getattr(torch.compiler, "_is_exporting_flag", None) is not None


def is_exporting() -> bool:
    """Whether torch.export makes a program.

    torch.compile takes torch.compiler.is_exporting() for True in some versions (2.10), but reads its variable.
    """
    return _knows_exporting and torch.compiler._is_exporting_flag


def define_library(namespace: str) -> torch.library.Library:
    """A Library of a namespace, which takes the place of that of an earlier import in this process.

    Notebooks and coverage import a package again; torch accepts one Library of a namespace, and would keep the earlier one.
    """
    operators = getattr(torch.ops, namespace)
    earlier = vars(operators).get("_library")
    if earlier is not None:
        earlier._destroy()
    operators._library = torch.library.Library(namespace, "DEF")
    return operators._library


def in_backward() -> bool:
    """Whether a backward pass runs on this thread, so that what is called now recomputes a forward pass."""
    return _current_graph_task_id() != -1


def hooks_pack_saved_tensors() -> bool:
    """Whether hooks (``torch.autograd.graph.saved_tensors_hooks``) get what is saved now, and may keep it."""
    return _saved_tensor_hooks(True) is not None


def in_transform() -> bool:
    """Whether a transform of torch.func (grad, vjp, jacrev, hessian, vmap) runs."""
    return _peek_transforms() is not None


def is_batched(gradient: Tensor) -> bool:
    """Whether vmap runs the backward pass (``is_grads_batched``, ``vectorize=True``)."""
    return in_transform() or _is_legacy_batched(gradient)


def is_dual(*arguments: Any) -> bool:
    """Whether one of ``arguments`` is a tensor with a tangent, of forward-mode differentiation."""
    # The level is -1 outside of forward mode, which saves the test of each tensor. Without this variable, each is tested.
    if getattr(forward_ad, "_current_level", 0) < 0:
        return False
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments)


# Gives a named tuple a name under which a saved program can return it. Without it, torch.export.save refuses such a program.
_register_namedtuple = getattr(torch.utils._pytree, "_register_namedtuple", None)


def register_namedtuple(cls: type) -> None:
    """Let programs that return a ``cls`` be saved by torch.export.save and compiled by AOTInductor."""
    if _register_namedtuple is not None:
        _register_namedtuple(cls, serialized_type_name=f"pspl_cuda.{cls.__name__}")


def mark_static_address(tensor: Tensor) -> None:
    """Tell Inductor that ``tensor`` stays where it is: its CUDA graphs then accept that they change it in place."""
    torch._dynamo.mark_static_address(tensor)


def constant_in_graphs(function: Any) -> Any:
    """Let torch.compile call ``function`` when it makes a graph: torch 2.4 can't read environment variables in one.

    This is torch.compiler.assume_constant_result, which imports all of torch._dynamo.
    """
    function._dynamo_marked_constant = True
    return function
