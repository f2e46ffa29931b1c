"""Activation checkpointing, saved tensors that are moved or packed, anomaly mode: the gradient is that of a plain call."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

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


CHECKPOINTS = {
    "reentrant": {"use_reentrant": True},
    "not reentrant": {"use_reentrant": False},
    "to the end": {"use_reentrant": False, "early_stop": False},
}


@pytest.mark.parametrize("compiled", [False, "the loss", "the checkpoint"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("calls_per_iteration", [1, 2])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpointed_module(dispatched, kind, calls_per_iteration, capturable, compiled):
    """Loss and gradient are those of one step, and the recomputation in backward does not count."""
    if compiled == "the checkpoint" and kind != "not reentrant":
        pytest.skip("torch.compile traces no other kind of checkpoint")
    keywords = {"iterations_per_step": 2, "calls_per_iteration": calls_per_iteration, "backend": dispatched.name}
    criterion, plain = PSPLLoss(**keywords, capturable=capturable), PSPLLoss(**keywords)
    torch._dynamo.reset()
    called = torch.compile(criterion, backend="aot_eager", fullgraph=True) if compiled == "the loss" else criterion
    options = {name: value for name, value in CHECKPOINTS[kind].items() if name != "early_stop"}

    def run(sr, hr):
        return checkpoint(called, sr, hr, **options)

    if compiled == "the checkpoint":
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    for call in range(4):
        images = distinct_pair((1, 3, 9, 10), torch.float32, dispatched.device)
        some, others = leaf_copy(images[0]), leaf_copy(images[0])
        with set_checkpoint_early_stop(CHECKPOINTS[kind].get("early_stop", True)):
            loss = run(some, images[1])
        expected = plain(others, images[1])
        # The compiled step is delta, with a rounding of its own.
        torch.testing.assert_close(loss, expected, rtol=2e-6 if compiled else 0, atol=0)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(some.grad, others.grad, rtol=1e-5 if compiled else 0, atol=0)
        assert criterion.iteration == plain.iteration == call // calls_per_iteration + 1
    torch._dynamo.reset()


def test_checkpointed_module_with_step(dispatched):
    """An explicit step is that of the recomputation, too."""
    sr, hr = distinct_pair((1, 3, 9, 10), torch.float32, dispatched.device)
    criterion = PSPLLoss(backend=dispatched.name)
    for use_reentrant in (False, True):
        checkpoint(criterion, leaf_copy(sr), hr, 0.001, use_reentrant=use_reentrant).backward()
    assert criterion.iteration == 0


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
