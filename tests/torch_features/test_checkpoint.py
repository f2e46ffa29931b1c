"""Activation checkpointing, saved tensors that are moved or packed, anomaly mode: the gradient is that of a plain call."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from helpers.cases import distinct_pair, leaf_copy
from pspl_cuda import PSPLLoss
from pspl_cuda.config import DISTANCES


def gradients(backend, distance, around=lambda loss, *images: loss(*images), dtype=torch.float32):
    """Gradients of both images behind an operation, with ``around(loss, sr, hr)`` in place of the call."""
    sr, hr = (leaf_copy(image) for image in distinct_pair((1, 2, 9, 10), dtype, backend.device))
    loss = around(lambda a, b: backend.pspl_loss(a.sin(), b, 1.0, distance=distance), sr, hr)
    (3 * loss).backward()
    return sr.grad, hr.grad


def assert_equal(some, others):
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
    assert all(gradient.any() for gradient in some)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
def test_checkpoint(backend, distance, use_reentrant):
    """Activation checkpointing runs the forward pass again inside backward."""

    def around(loss, *images):
        return checkpoint(loss, *images, use_reentrant=use_reentrant)

    assert_equal(gradients(backend, distance, around), gradients(backend, distance))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_network(backend, use_reentrant):
    """The usual case: the network is checkpointed, the module is called once per iteration."""
    sr, hr = distinct_pair((1, 3, 9, 10), torch.float32, backend.device)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1).to(backend.device)
    results = []
    for run in (lambda x: checkpoint(layer, x, use_reentrant=use_reentrant), layer):
        layer.zero_grad()
        backend.pspl_loss(run(leaf_copy(sr)), hr, 1.0, distance="l2").backward()
        results.append([parameter.grad.clone() for parameter in layer.parameters()])
    assert_equal(*results)


@pytest.mark.parametrize(
    ("use_reentrant", "step", "iteration"), [(False, None, 1), (True, None, 2), (True, 0.001, 0), (False, 0.001, 0)]
)
def test_checkpointed_loss(backend, use_reentrant, step, iteration):
    """A reentrant checkpoint of the module itself counts again in backward (docs/definition.md), unless step is passed."""
    if backend.name == "emulated":
        pytest.skip("PSPLLoss runs on the package's own backends")
    sr, hr = distinct_pair((1, 3, 9, 10), torch.float32, backend.device)
    criterion = PSPLLoss(backend=backend.name)
    checkpoint(criterion, leaf_copy(sr), hr, step, use_reentrant=use_reentrant).backward()
    assert criterion.iteration == iteration


@pytest.mark.parametrize("distance", DISTANCES)
def test_save_on_cpu(backend, distance):
    """Saved tensors are packed and come back as others: their memory is not the gradient's own."""

    def around(loss, *images):
        with torch.autograd.graph.save_on_cpu():
            return loss(*images)

    assert_equal(gradients(backend, distance, around), gradients(backend, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_packed_tensors_survive(backend, distance):
    """A hook may keep what it packed: backward must not write into it."""
    kept = []

    def pack(tensor):
        kept.append((tensor, tensor.clone()))
        return len(kept) - 1

    def around(loss, *images):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: kept[index][1].clone()):
            return loss(*images)

    assert_equal(gradients(backend, distance, around), gradients(backend, distance))
    assert kept
    assert all(torch.equal(*pair) for pair in kept)


@pytest.mark.parametrize("distance", DISTANCES)
def test_anomaly_mode(backend, distance):
    def around(loss, *images):
        return loss(*images)

    with torch.autograd.detect_anomaly(check_nan=True):
        got = gradients(backend, distance, around)
    assert_equal(got, gradients(backend, distance))


def test_anomaly_mode_names_the_loss(fused):
    """A NaN of the backward pass is reported with the node's name."""
    sr, hr = distinct_pair((1, 1, 5, 6), torch.float32, fused.device)
    sr[..., 2, 3] = float("nan")
    with torch.autograd.detect_anomaly(check_nan=True), pytest.raises(RuntimeError, match=r"_LossBackward.* nan"):
        fused.pspl_loss(leaf_copy(sr), hr, 1.0).backward()
