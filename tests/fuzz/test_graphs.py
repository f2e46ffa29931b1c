"""A random autograd graph around several losses has the gradients of the same graph with backend="reference"."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import pspl_cuda
from helpers import backends
from pspl_cuda.config import DISTANCES

OPERATIONS = {
    "scale": lambda a, b: 0.7 * a + 0.1,
    "add": lambda a, b: 0.5 * a + 0.4 * b,
    "multiply": lambda a, b: a * b,
    "flip": lambda a, b: a.flip(-1),
    "detach": lambda a, b: a.detach() + 0.1 * b,
    "sine": lambda a, b: a.sin(),
}


@settings(max_examples=2 * settings().max_examples)
@given(seed=st.integers(0, 2**64))
def test_gradients_of_a_graph(seed):
    """Shared images, accumulation, hooks, retain_graph, create_graph."""
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    for got, wanted in zip(run_graph(seed, "cpu"), run_graph(seed, "reference"), strict=True):
        scale = wanted.abs().max().item() if wanted.numel() else 0.0
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10 * scale + 1e-15)


def run_graph(seed: int, backend: str) -> list[torch.Tensor]:
    """Draws the same graph for every backend. float64, so that only errors of the graph are seen."""
    rng = random.Random(seed)
    shape, generator = (1, 2, rng.randint(3, 9), rng.randint(3, 9)), torch.Generator().manual_seed(rng.getrandbits(32))
    leaves = [torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    nodes, seen = list(leaves), []
    for _ in range(rng.randint(1, 4)):
        result = rng.choice([*OPERATIONS.values()])(rng.choice(nodes), rng.choice(nodes))
        if result.requires_grad and rng.random() < 0.3:
            result.register_hook(lambda gradient: seen.append(gradient.detach().clone()))
        if result.requires_grad and rng.random() < 0.2:
            result.register_hook(lambda gradient: 0.5 * gradient)
        nodes.append(result)
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(rng.randint(1, 3)):
        keywords = {"distance": rng.choice(DISTANCES), "reduction": rng.choice(["mean", "sum", "none"]), "eps": 0.1}
        loss = pspl_cuda.pspl_loss(
            rng.choice(nodes), rng.choice(nodes), rng.uniform(0.8, 2), backend=backend, **keywords
        ).mean()
        total = total + rng.choice([1.0, 1.0, -0.5]) * (loss if rng.random() < 0.7 else loss.square())
    if not total.requires_grad:
        return []
    values = [total.detach()]
    for _ in range(rng.randint(0, 2)):
        inputs = rng.sample(leaves, rng.randint(1, 3))
        gradients = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        values += [gradient.clone() for gradient in gradients]
    if rng.random() < 0.5:
        inputs = rng.sample(leaves, rng.randint(1, 3))
        gradients = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
        values += [gradient.detach().clone() for gradient in gradients]
        total = total + sum(gradient.square().sum() for gradient in gradients)
    for retain in [True] * rng.randint(0, 1) + [False]:
        total.backward(retain_graph=retain)
    return values + [torch.zeros(shape) if leaf.grad is None else leaf.grad for leaf in leaves] + seen
