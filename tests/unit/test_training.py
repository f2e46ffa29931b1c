"""The loss inside of what training scripts do around it: processes, sharding, checkpointing, offloading, anomaly mode."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.utils.checkpoint import checkpoint

from helpers import training_worker
from helpers.cases import distinct_pair, leaf_copy
from pspl_cuda import PSPLLoss

DISTANCES = ["l1", "l2", "charbonnier"]


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


def test_traced_loss(backend):
    """torch.jit.trace without its check, which traces again without gradients; step is an input of the program."""
    if backend.name == "emulated":
        pytest.skip("PSPLLoss runs on the package's own backends")
    sr, hr = distinct_pair((1, 3, 9, 10), torch.float32, backend.device)
    criterion = PSPLLoss(backend=backend.name)
    traced = torch.jit.trace(criterion, (leaf_copy(sr), hr, torch.tensor(1.0)), check_trace=False)
    for step in (1.0, 2.0):
        results = []
        for run in (traced, criterion):
            image = leaf_copy(sr)
            loss = run(image, hr, torch.tensor(step))
            results += [(loss.detach(), *torch.autograd.grad(loss, image))]
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-9)


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


@pytest.mark.not_on("emulated")  # bound by pybind11, which the compiler can't trace
@pytest.mark.parametrize("distance", DISTANCES)
def test_compiled_autograd(backend, distance):
    torch._dynamo.reset()

    def compiled():
        with compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
            return gradients(backend, distance)

    got = compiled()
    torch._dynamo.reset()
    for a, b in zip(got, gradients(backend, distance), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_process(method, tmp_path):
    """Another process of either kind computes the same bits."""
    context = torch.multiprocessing.get_context(method)
    process = context.Process(target=training_worker.evaluate_to, args=(str(tmp_path / "result.pt"),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    loss, gradient = torch.load(tmp_path / "result.pt")
    expected_loss, expected_gradient = training_worker.evaluate()
    assert loss == expected_loss
    assert torch.equal(gradient, expected_gradient)


def test_module_is_sent_to_a_process():
    """Pickled with its count, as a DataLoader or a launcher does."""
    loss = PSPLLoss(start_iteration=41, distance="l2")
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        twin = pool.apply(_advanced, (loss,))
    assert (loss.iteration, twin.iteration, twin.distance) == (41, 42, "l2")


def _advanced(loss):
    loss(torch.rand(1, 1, 5, 6), torch.rand(1, 1, 5, 6))
    return loss


@pytest.mark.deep
def test_uneven_inputs(tmp_path):
    """A process that runs out of batches joins the others' reductions; each counts its own calls."""
    torch.multiprocessing.spawn(training_worker.run_uneven, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"uneven{rank}.pt") for rank in range(2)]
    assert [iteration for iteration, _ in results] == [3, 2]
    for name, weight in results[0][1].items():
        assert torch.equal(weight, results[1][1][name])
        assert weight.isfinite().all()


@pytest.mark.deep
def test_fully_sharded(tmp_path):
    """FSDP2 trains what one process does on the joint batch."""
    torch.multiprocessing.spawn(training_worker.run_sharded, (str(tmp_path),), nprocs=2)
    expected = training_worker.expected_weights()
    for rank in range(2):
        iteration, weights = torch.load(tmp_path / f"sharded{rank}.pt")
        assert iteration == 3
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)
