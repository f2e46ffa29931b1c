"""The names of torch that are private or depend on its version: each exists in this torch, and one file has them all."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

import pspl_cuda
from pspl_cuda import _torch
from pspl_cuda._build import numbers

PACKAGE = Path(pspl_cuda.__file__).parent

# Each with the first version of torch that has it, if that is not the oldest one with kernels, 2.4.
NAMES = {
    "torch._C._AutoDispatchBelowAutograd": None,
    "torch._C._autograd._get_current_graph_task_keep_graph": (2, 5),
    "torch._C._autograd._top_saved_tensors_default_hooks": (2, 8),
    "torch._C._current_graph_task_id": None,
    "torch._C._functorch.is_legacy_batchedtensor": None,
    "torch._C._functorch.peek_interpreter_stack": None,
    "torch._dynamo.mark_static_address": None,
    "torch.autograd.forward_ad._current_level": None,
    "torch.compiler._is_exporting_flag": (2, 7),
    "torch.utils._pytree._register_namedtuple": None,
}
VERSION = numbers(torch.__version__)


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name):
    """Where it does not, the package does without, as _torch.py says; torch may rename what is private."""
    first = NAMES[name]
    if first is not None and first > VERSION:
        pytest.skip(f"torch {torch.__version__} is older")
    functools.reduce(getattr, name.split(".")[1:], torch)


def test_every_name_is_in_the_list():
    """What _torch.py looks up in torch is tested above."""
    source = (PACKAGE / "_torch.py").read_text()
    looked_up = re.findall(r'getattr\(([\w.]+), "(\w+)"', source) + re.findall(r"(torch\._[\w.]+)\.(\w+)", source)
    found = {".".join(parts) for parts in looked_up} - {"torch.utils._pytree"}
    found = {
        name.replace("forward_ad.", "torch.autograd.forward_ad.", 1) if name.startswith("forward_ad") else name
        for name in found
    }
    modules = {"torch._C._autograd", "torch._C._functorch"}
    assert found - modules == set(NAMES)


def test_no_other_file_has_private_names():
    private = re.compile(r"\btorch\.(?:\w+\.)*_[a-zA-Z]\w*")
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "_torch.py"]
    found = {path.name: private.findall(path.read_text()) for path in files}
    assert len(files) > 10
    assert not {name: names for name, names in found.items() if names}


def test_in_backward():
    """Between the calls of a backward pass, and only there."""
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: seen.append(_torch.in_backward()))
    assert not _torch.in_backward()
    y.sum().backward()
    assert seen == [True]
    assert not _torch.in_backward()


@pytest.mark.skipif(VERSION < (2, 5), reason="torch 2.5 or later")
def test_keeps_graph():
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = (x * x).sum()
    y.register_hook(lambda _: seen.append(_torch.keeps_graph()))
    y.backward(retain_graph=True)
    y.backward()
    assert seen == [True, False]


def test_hooks_pack_saved_tensors():
    assert not _torch.hooks_pack_saved_tensors()
    with torch.autograd.graph.save_on_cpu():
        assert _torch.hooks_pack_saved_tensors() == (VERSION >= (2, 8))


def test_in_transform():
    seen = []
    assert not _torch.in_transform()
    torch.func.grad(lambda x: (seen.append(_torch.in_transform()), x)[1])(torch.tensor(1.0))
    assert seen == [True]


def test_is_batched():
    """vmap of functorch and the one of is_grads_batched."""
    seen = []

    def factor(gradient):
        seen.append(_torch.is_batched(gradient))
        return gradient

    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(factor)
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(3, 2), is_grads_batched=True)
    assert seen == [False, True]


def test_is_dual():
    x = torch.ones(1)
    assert not _torch.is_dual(x, None)
    with torch.autograd.forward_ad.dual_level():
        assert not _torch.is_dual(x, None)
        assert _torch.is_dual(None, torch.autograd.forward_ad.make_dual(x, x))


def test_is_exporting():
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1 if _torch.is_exporting() else x

    assert Module()(torch.zeros(1)) == 0
    assert torch.compile(Module(), backend="eager", fullgraph=True)(torch.zeros(1)) == 0
    program = torch.export.export(Module(), (torch.zeros(1),)).module()
    assert program(torch.zeros(1)) == (VERSION >= (2, 7))


def test_constant_in_graphs():
    """The function is called once, while the graph is made, and not traced."""
    calls = []
    constant = _torch.constant_in_graphs(lambda: calls.append(None) or 2)
    function = torch.compile(lambda x: x + constant(), fullgraph=True, backend="eager")
    assert function(torch.ones(1)) == function(torch.ones(1)) == 3
    assert len(calls) == 1
