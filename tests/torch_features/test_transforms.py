"""Batched gradients, torch.func, forward mode: the gradient is right, or one sentence names the remedy."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch.autograd import forward_ad

from helpers.cases import distinct_pair, leaf_copy
from pspl_cuda import PSPLLoss
from pspl_cuda.config import DISTANCES


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of whatever Python they have seen
        yield


def images(shape=(2, 3, 12, 13), dtype=torch.float32, device="cpu"):
    return distinct_pair(shape, dtype, device)


# ---------------------------------------------------------------- batched gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("distance", DISTANCES)
def test_batched_gradients(backend, distance, dtype):
    """is_grads_batched runs backward under vmap."""
    sr, hr = (leaf_copy(image) for image in images((1, 1, 6, 7), dtype, backend.device))
    factors = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=tolerance_dtype(dtype), device=backend.device)
    loss = backend.pspl_loss(sr, hr, 1.0, distance=distance)
    single = [torch.autograd.grad(loss, (sr, hr), factor, retain_graph=True) for factor in factors]
    # Without retain_graph, the memory of the saved gradient would become that of a single gradient.
    batched = torch.autograd.grad(loss, (sr, hr), factors, is_grads_batched=True)
    for i, got in enumerate(batched):
        wanted = torch.stack([gradients[i] for gradients in single])
        torch.testing.assert_close(
            got, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6 if dtype == torch.float16 else 1e-12
        )


def tolerance_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("distance", DISTANCES)
def test_batched_gradients_per_pixel(backend, distance):
    sr, hr = images((1, 1, 5, 6), torch.float64, backend.device)

    def loss(a):
        return backend.pspl_loss(a, hr, 1.0, distance=distance, reduction="none")

    jacobians = [torch.autograd.functional.jacobian(loss, sr, vectorize=vectorize) for vectorize in (True, False)]
    torch.testing.assert_close(*jacobians, rtol=1e-12, atol=1e-15)
    assert jacobians[0].any()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("function", ["jacobian", "hessian"])
def test_vectorized_derivatives(backend, distance, function):
    sr, hr = images((1, 1, 4, 5), torch.float64, backend.device)

    def loss(a):
        # A function of the loss, so that l1 has a second derivative as well.
        return backend.pspl_loss(a, hr, 1.0, distance=distance, eps=0.1).square()

    derivative = getattr(torch.autograd.functional, function)
    results = [derivative(loss, sr, vectorize=vectorize) for vectorize in (True, False)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-15)
    assert results[0].any()


def test_double_backward_trick(backend):
    """torch.autograd.functional.jvp differentiates the gradient by the gradient from above."""
    sr, hr = images((1, 1, 5, 6), torch.float64, backend.device)
    _, slope = torch.autograd.functional.jvp(lambda a: backend.pspl_loss(a, hr, 1.0), sr, hr)
    (gradient,) = torch.autograd.grad(backend.pspl_loss(a := leaf_copy(sr), hr, 1.0), a)
    torch.testing.assert_close(slope, (gradient * hr).sum(), rtol=1e-12, atol=0)


# ---------------------------------------------------------------- torch.func, forward mode


def transforms(loss, x):
    """Name: the transform of ``loss(image)`` at ``x``, and the same by torch.autograd or a loop."""

    def gradient(a):
        a = leaf_copy(a)
        return torch.autograd.grad(loss(a), a)[0]

    def hessian(a):
        return torch.autograd.functional.hessian(loss, a)

    pair = torch.stack((x, x.flip(-1)))
    return {
        "grad": (lambda: torch.func.grad(loss)(x), lambda: gradient(x)),
        "vjp": (lambda: torch.func.vjp(loss, x)[1](torch.tensor(2.0, dtype=x.dtype))[0], lambda: 2 * gradient(x)),
        "jacrev": (lambda: torch.func.jacrev(loss)(x), lambda: gradient(x)),
        "jacfwd": (lambda: torch.func.jacfwd(loss)(x), lambda: gradient(x)),
        "jvp": (lambda: torch.func.jvp(loss, (x,), (x,))[1], lambda: (gradient(x) * x).sum()),
        "hessian": (lambda: torch.func.hessian(loss)(x), lambda: hessian(x)),
        "vmap": (lambda: torch.func.vmap(loss)(pair), lambda: torch.stack([loss(a) for a in pair])),
        "vmap of grad": (
            lambda: torch.func.vmap(torch.func.grad(loss))(pair),
            lambda: torch.stack([gradient(a) for a in pair]),
        ),
        "vectorized forward mode": (
            lambda: torch.autograd.functional.jacobian(loss, x, vectorize=True, strategy="forward-mode"),
            lambda: gradient(x),
        ),
    }


TRANSFORMS = list(transforms(None, torch.zeros(1)))


def works_or_names_the_reference(fused, transform, expected):
    """On the kernels a sentence; on the reference, the value."""
    if not fused:
        torch.testing.assert_close(transform(), expected(), rtol=1e-10, atol=1e-14)
        return
    with pytest.raises(RuntimeError) as caught:
        transform()
    sentence = str(caught.value)
    assert re.fullmatch(r'[A-Z][^\n]* Pass backend="reference"\.', sentence), sentence


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_transforms_of_the_function(backend, distance, name):
    """Never torch's own words about setup_context or batching rules."""
    sr, hr = images((1, 1, 4, 5), torch.float64, backend.device)

    def loss(a):
        return backend.pspl_loss(a, hr, 1.0, distance=distance, eps=0.1)

    works_or_names_the_reference(backend.fused, *transforms(loss, sr)[name])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_the_module(dispatched, name):
    sr, hr = images((1, 1, 4, 5), torch.float64, dispatched.device)
    loss = PSPLLoss(distance="l2", start_iteration=1000, backend=dispatched.name)
    counting = PSPLLoss(distance="l2", start_iteration=1000, backend=dispatched.name)
    works_or_names_the_reference(dispatched.fused, *transforms(lambda a: loss.eval()(a, hr), sr)[name])
    if dispatched.fused:
        with pytest.raises(RuntimeError, match="reference"):
            transforms(lambda a: counting(a, hr), sr)[name][0]()
        assert counting.iteration == 1000


@pytest.mark.parametrize("function", ["similarity_map", "attention_map"])
def test_transforms_of_the_maps(backend, function):
    pair = images((2, 1, 4, 5), torch.float64, backend.device)
    step = () if function == "similarity_map" else (1.0,)

    def call(a, b):
        return getattr(backend, function)(a, b, *step)

    works_or_names_the_reference(backend.fused, lambda: torch.func.vmap(call)(*pair), lambda: call(*pair))


@pytest.mark.parametrize("which", ["sr", "hr", "step"])
@pytest.mark.parametrize("function", ["pspl_loss", "attention_map"])
def test_dual_numbers(backend, function, which):
    """A tangent that the kernel does not see would be a derivative of zero. The attention map is a constant to the images, and to
    the reference only."""
    sr, hr = images((1, 1, 4, 5), torch.float64, backend.device)
    step = torch.tensor(1.0, dtype=torch.float64, device=backend.device)
    arguments = {"sr": sr, "hr": hr, "step": step}

    def tangent():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(arguments[which], torch.ones_like(arguments[which]))
            result = getattr(backend, function)(*(arguments | {which: dual}).values())
            return forward_ad.unpack_dual(result).tangent

    if not backend.fused:
        assert (tangent() is None) == (function == "attention_map" and which != "step")
    else:
        if function == "attention_map" and which != "step":
            assert tangent() is None
            return
        with pytest.raises(RuntimeError, match=rf'{which}.* dual tensor .*Pass backend="reference"\.$'):
            tangent()
