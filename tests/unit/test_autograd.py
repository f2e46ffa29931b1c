"""Autograd and the operators: first and second derivatives, what is saved, modes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import oracle, tolerances
from helpers.cases import distinct_pair, leaf_copy
from pspl_cuda.config import DISTANCES

INF = math.inf

# Without it, no backward pass is known to be the last one, and none works in saved memory.
KNOWS_LAST_BACKWARD = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")


# ---------------------------------------------------------------- derivatives

# delta = inf makes the attention map a true constant, gamma, so that finite differences see what autograd is to see.
# (For a finite delta they would also see the map move, which Eq. 10 forbids; test_second_derivative covers that case.)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(backend, distance, reduction):
    sr, hr = (leaf_copy(x) for x in distinct_pair(device=backend.device))
    kwargs = {"distance": distance, "reduction": reduction, "eps": 0.1, "gamma": 1.7}
    assert torch.autograd.gradcheck(lambda a, b: backend.pspl_loss(a, b, INF, **kwargs), (sr, hr))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradgradcheck(backend, distance, reduction):
    """By both images and by the gradient from above."""
    sr, hr = (leaf_copy(x) for x in distinct_pair((1, 1, 4, 5), device=backend.device))
    kwargs = {"distance": distance, "reduction": reduction, "eps": 0.1, "gamma": 1.7}
    assert torch.autograd.gradgradcheck(lambda a, b: backend.pspl_loss(a, b, INF, **kwargs), (sr, hr))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_second_derivative(backend, distance, reduction):
    """With a map that varies, first and second derivative are those of Eq. 10 with the oracle's map as a constant."""
    sr, hr = distinct_pair(device=backend.device)
    m_a = oracle.attention_map(sr.cpu().numpy(), hr.cpu().numpy(), 1.3)
    weight = torch.from_numpy(m_a).to(backend.device)
    kwargs = {"distance": distance, "reduction": reduction, "eps": 0.1}

    def expected_loss(a, b):
        d = weight * (a - b)
        loss = {"l1": d.abs(), "l2": d.square(), "charbonnier": (d.square() + 0.1**2).sqrt()}[distance]
        return loss.mean() if reduction == "mean" else loss

    def second(function):
        a, b = leaf_copy(sr), leaf_copy(hr)
        loss = function(a, b)
        above = torch.full_like(loss, 0.7).requires_grad_()
        first = torch.autograd.grad(loss, (a, b), above, create_graph=True)
        direction = torch.linspace(-1, 2, a.numel(), dtype=a.dtype, device=a.device).reshape(a.shape)
        dot = (direction * first[0]).sum() + (direction.flip(-1) * first[1]).sum()
        by = torch.autograd.grad(dot, (a, b, above), allow_unused=True, materialize_grads=True)
        # clone: before torch 2.10, numpy() of the zeros that materialize_grads makes is memory without a value.
        return [x.detach().cpu().clone().numpy(force=True) for x in (*first, *by)]

    actual = second(lambda a, b: backend.pspl_loss(a, b, 1.3, **kwargs))
    for got, wanted in zip(actual, second(expected_loss), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-14)
    # l1 is straight: its second derivative by the images is zero. That of the others is not.
    assert np.any(actual[2]) == np.any(actual[3]) == (distance != "l1")
    assert np.any(actual[4])


# Graphs in which both images depend on one leaf: (sr, hr) as functions of the leaf and a constant image.
DEPENDENT = {
    "sr of hr": lambda x, _: (0.5 * x + 0.1, x),
    "hr of sr": lambda x, _: (x, 0.5 * x + 0.1),
    "both of one": lambda x, _: (0.9 * x, 0.2 * x.square()),
    "views of one": lambda x, _: (x, x.flip(-1)),
    "hr of sr, detached": lambda x, y: (x + 0.1 * y, (0.5 * x).detach()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dependence", DEPENDENT)
@pytest.mark.parametrize("distance", DISTANCES)
def test_images_that_depend_on_each_other(backend, distance, dependence, dtype):
    """A gradient penalty with sr = net(hr): create_graph changes no first derivative, and the second one is Eq. 10's with the map
    as a constant. A path through the outer graph that is counted twice gives zero for a factor of 0.5."""
    x, y = (image.to(dtype) for image in distinct_pair((1, 1, 12, 12), device=backend.device))
    make = DEPENDENT[dependence]
    sr, hr = make(x, y)
    weight = torch.from_numpy(oracle.attention_map(*(i.cpu().double().numpy() for i in (sr, hr)), 1.0))
    weight = weight.to(backend.device)

    def expected_loss(a, b):
        d = weight * (a - b).double()
        return {"l1": d.abs(), "l2": d.square(), "charbonnier": (d.square() + 0.1**2).sqrt()}[distance].mean()

    def derivatives(function):
        leaf = leaf_copy(x)
        loss = function(*make(leaf, y))
        (plain,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        # Where l1's gradient is a constant it may say so by requiring no gradient.
        penalty = 1e3 * first.square().sum() + 0 * leaf.sum()
        (second,) = torch.autograd.grad(penalty, leaf)
        return plain, first.detach(), second

    got = derivatives(lambda a, b: backend.pspl_loss(a, b, 1.0, distance=distance, eps=0.1))
    assert got[0].norm() > 1e-4
    tolerance = {"rtol": 1e-10, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-7}
    for actual, wanted in zip(got, derivatives(expected_loss), strict=True):
        torch.testing.assert_close(actual, wanted, **tolerance)


def test_gradient_penalty_in_float32(backend):
    """A common use of a second derivative, in the common type and with one differentiable image."""
    sr, hr = distinct_pair((2, 3, 12, 13), torch.float32, backend.device)
    sr = leaf_copy(sr)
    (grad,) = torch.autograd.grad(backend.pspl_loss(sr, hr, 1.0, distance="l2"), sr, create_graph=True)
    grad.square().sum().backward()
    m_a = oracle.attention_map(sr.detach().cpu().double().numpy(), hr.cpu().double().numpy(), 1.0)
    d = (sr.detach() - hr).cpu().double().numpy()
    expected = 2 * (2 * m_a**2 / d.size) ** 2 * d
    tolerances.assert_gradient(sr.grad, expected, torch.float32, 4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_retain_graph(backend, distance):
    """Backward twice gives the same gradient twice, and its sum in .grad."""
    sr, hr = (leaf_copy(x) for x in distinct_pair((1, 3, 9, 10), torch.float32, backend.device))
    loss = backend.pspl_loss(sr, hr, 1.0, distance=distance)
    first = torch.autograd.grad(loss, (sr, hr), retain_graph=True)
    second = torch.autograd.grad(loss, (sr, hr), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(sr.grad, 2 * first[0])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("wanted", ["sr", "hr", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_last_backward_reuses_the_saved_gradient(fused, dtype, wanted, reduction):
    """The gradient takes the saved gradient's memory only in the last backward pass, except in float64 and where the gradient of
    float16 images is saved in float32, and has the same bits. With torch 2.4, which can't tell the last one, it never does."""
    sr, hr = distinct_pair((1, 2, 9, 10), dtype, fused.device)
    inputs = {"sr": [leaf_copy(sr)], "hr": [leaf_copy(hr)], "both": [leaf_copy(sr), leaf_copy(hr)]}[wanted]
    loss = fused.pspl_loss(
        *{"sr": (*inputs, hr), "hr": (sr, *inputs), "both": inputs}[wanted], 1.0, reduction=reduction
    )
    saved_gradient = loss.grad_fn.saved_tensors[0]
    kept = torch.autograd.grad(loss, inputs, torch.full_like(loss, 3.0), retain_graph=True)
    assert all(gradient.data_ptr() != saved_gradient.data_ptr() for gradient in kept)
    last = torch.autograd.grad(loss, inputs, torch.full_like(loss, 3.0))
    assert all(torch.equal(a, b) for a, b in zip(kept, last, strict=True))
    assert (last[0].data_ptr() == saved_gradient.data_ptr()) == (
        KNOWS_LAST_BACKWARD and wanted != "hr" and dtype in (torch.float32, torch.bfloat16)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_upstream_gradient(backend, dtype):
    """A loss among others: its factor is neither ignored nor rounded into the gradient's type first."""
    sr, hr = distinct_pair((2, 3, 9, 10), dtype, backend.device)
    expected = oracle.pspl(sr.cpu().double().numpy(), hr.cpu().double().numpy(), 1.0, upstream=3e-3 * 1234.5)
    sr = leaf_copy(sr)
    (3e-3 * (1234.5 * backend.pspl_loss(sr, hr, 1.0) + 7)).backward()
    tolerances.assert_gradient(sr.grad, expected.grad_sr, tolerances.compute_dtype(sr))


def test_upstream_gradient_of_zero_and_nan(backend):
    sr, hr = distinct_pair((1, 1, 9, 10), torch.float32, backend.device)
    for factor in (0.0, math.nan, INF):
        a = leaf_copy(sr)
        (backend.pspl_loss(a, hr, INF) * factor).backward()
        assert torch.equal(a.grad.isfinite(), torch.full_like(a, factor == 0).bool())


def test_gradient_through_a_network(backend):
    """The images are not leaves: what comes before the loss gets its share by the chain rule."""
    sr, hr = distinct_pair((1, 1, 8, 9), device=backend.device)
    gain = torch.tensor(0.9, dtype=torch.float64, device=backend.device, requires_grad=True)
    backend.pspl_loss((gain * sr).transpose(-1, -2), hr.transpose(-1, -2), 1.0).backward()
    expected = oracle.pspl(0.9 * sr.cpu().numpy(), hr.cpu().numpy(), 1.0).grad_sr
    assert gain.grad.item() == pytest.approx((expected * sr.cpu().numpy()).sum(), rel=1e-10)


def test_same_tensor_twice(backend):
    """loss(x, x): the two gradients cancel, and nothing is freed or counted twice."""
    x = leaf_copy(distinct_pair(device=backend.device)[0])
    backend.pspl_loss(x, x, 1.0, distance="charbonnier").backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


# ---------------------------------------------------------------- float16


@pytest.mark.not_on("emulated")  # too slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_loss_scale(backend, dtype):
    """1 / n of a large batch underflows in float16. With GradScaler's factor the gradient must come out whole: what is
    saved for backward may therefore not be divided by n before the factor is known."""
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand((16, 3, 192, 192), generator=generator).to(dtype).to(backend.device)
    sr = leaf_copy(hr + 0.25)
    n = sr.numel()
    (65536 * backend.pspl_loss(sr, hr, INF, gamma=0.01)).backward()
    expected = np.sign((sr.detach().float() - hr.float()).cpu().double().numpy()) * 0.01 * 65536 / n
    assert 0.01 / n < 2.0**-25, "this batch is no test: 1 / n does not underflow"
    tolerances.assert_gradient(sr.grad, expected, torch.float32)


# Of Eq. 8, from the first iteration to the end of a run. Attention reaches float16's range after about a third of a step.
SCHEDULE = (0.0, 1e-3, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8, 1.0, 3.0, 20.0, 60.0)


def _assert_rounded_once(gradient, expected, step, distance):
    """A float16 gradient is the exact one within the budget of float32 and one rounding; infinite beyond float16's range."""
    growth = tolerances.growth(step, distance=distance, budget=tolerances.GRADIENT)
    overflow = np.abs(expected) >= 65520  # halfway from the largest number to the next one
    assert np.array_equal(gradient.isinf().cpu().numpy(), overflow)
    inside = torch.from_numpy(~overflow).to(gradient.device)
    tolerances.assert_gradient(gradient[inside], expected[~overflow], torch.float32, growth)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_float16_rounds_once_at_every_step(backend, distance, reduction):
    """Under a loss scale of 2^16, from the first step on, where the attention is far below the range of float16."""
    sr, hr = distinct_pair((1, 1, 32, 32), torch.float16, backend.device)
    for step in SCHEDULE:
        leaf = leaf_copy(sr)
        loss = backend.pspl_loss(leaf, hr, step, distance=distance, reduction=reduction)
        (2.0**16 * loss).backward()
        expected = oracle.pspl(
            *(x.cpu().double().numpy() for x in (sr, hr)),
            step,
            distance=distance,
            reduction=reduction,
            upstream=2.0**16,
        )
        _assert_rounded_once(leaf.grad, expected.grad_sr, step, distance)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_float16_under_a_grad_scaler(backend, reduction):
    """The scaler's factor falls while gradients overflow and grows while they do not; each gradient is rounded once."""
    sr, hr = distinct_pair((1, 1, 32, 32), torch.float16, backend.device)
    weight = torch.ones((), device=backend.device, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler(backend.device.type, growth_interval=1)
    scales = []
    for step in SCHEDULE:
        output = weight.half() * sr
        output.retain_grad()
        scaler.scale(backend.pspl_loss(output, hr, step, reduction=reduction)).backward()
        scales.append(scaler.get_scale())
        expected = oracle.pspl(
            *(x.detach().cpu().double().numpy() for x in (output, hr)), step, reduction=reduction, upstream=scales[-1]
        )
        _assert_rounded_once(output.grad, expected.grad_sr, step, "l1")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert max(scales) > scales[0], "the scaler's factor never grew"


def test_scaled_gradient_overflows_to_infinity(backend):
    """GradScaler finds a factor that is too large by the infinities that it makes."""
    sr, hr = distinct_pair((1, 1, 4, 4), torch.float16, backend.device)
    sr = leaf_copy(sr)
    (2.0**24 * backend.pspl_loss(sr, hr, INF)).backward()
    assert sr.grad.isinf().all()


# ---------------------------------------------------------------- modes, and what is saved


def test_inference_mode_target(backend):
    """A target from an EMA model that ran in inference mode."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, backend.device)
    with torch.inference_mode():
        target = hr * 1.0
    for distance in DISTANCES:
        a, b = leaf_copy(sr), leaf_copy(sr)
        loss = backend.pspl_loss(a, target, 1.0, distance=distance)
        loss.backward()
        backend.pspl_loss(b, hr, 1.0, distance=distance).backward()
        assert torch.equal(a.grad, b.grad)


def test_inside_inference_mode(backend):
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, backend.device)
    with torch.inference_mode():
        loss, stats = backend.pspl_loss(leaf_copy(sr), hr, 1.0, return_stats=True)
        m_a = backend.attention_map(sr, hr, 1.0)
    assert loss.is_inference()
    assert torch.equal(loss.clone(), backend.pspl_loss(sr, hr, 1.0, return_stats=True)[0])
    assert m_a.shape == sr.shape
    assert stats.mean_attention.item() == pytest.approx(m_a.mean().item(), rel=1e-6)


class _Saved:
    """Everything that autograd keeps between forward and backward."""

    def __init__(self):
        self.tensors = []

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self.tensors

    def _pack(self, tensor):
        self.tensors.append(tensor)
        return tensor

    def __exit__(self, *details):
        self.hooks.__exit__(*details)


def test_nothing_is_saved_without_gradient(backend):
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, backend.device)
    with _Saved() as saved, torch.no_grad():
        loss = backend.pspl_loss(leaf_copy(sr), hr, 1.0, distance="l2")
    assert loss.grad_fn is None
    assert not loss.requires_grad
    with _Saved() as more:
        loss = backend.pspl_loss(sr, hr, 1.0, distance="l2")
        backend.similarity_map(leaf_copy(sr), leaf_copy(hr))
        backend.attention_map(leaf_copy(sr), leaf_copy(hr), 1.0)
    assert loss.grad_fn is None
    assert saved == more == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_only_the_gradient_is_saved(fused, dtype):
    """For l1, one tensor of the image's size, which becomes the gradient unless it is wider, and no image."""
    sr, hr = distinct_pair((1, 2, 9, 10), dtype, fused.device)
    sr = leaf_copy(sr)
    with _Saved() as saved:
        fused.pspl_loss(sr, hr, 1.0, return_stats=True)
    (saved_gradient,) = saved
    assert saved_gradient.shape == sr.shape
    assert saved_gradient.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    expected = oracle.pspl(sr.detach().cpu().double().numpy(), hr.cpu().double().numpy(), 1.0)
    tolerances.assert_gradient(saved_gradient, expected.grad_sr, tolerances.compute_dtype(sr, hr))


def test_images_may_change_after_forward(backend):
    """Data loaders reuse target buffers, and clamp_ follows the loss in some loops: l1 needs neither image again."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, backend.device)
    a, b = leaf_copy(sr), leaf_copy(sr)
    backend.pspl_loss(b, hr, 1.0).backward()
    output, target = a * 1.0, hr.clone()
    loss = backend.pspl_loss(output, target, 1.0)
    target.zero_()
    if backend.fused:
        output.detach().zero_()
    loss.backward()
    assert torch.equal(a.grad, b.grad)


def _noticed(backward):
    """True if autograd refuses because something it had saved has been overwritten; another error is not caught."""
    try:
        backward()
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return True
        raise
    return False


def test_work_in_saved_memory_is_seen(fused):
    """The gradient takes the saved gradient's memory: another graph that has saved this tensor must refuse to use it. Where it
    takes none (torch 2.4), the tensor stays as it was."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, fused.device)
    for factor in (1.0, 3.0):
        loss = fused.pspl_loss(leaf_copy(sr), hr, 1.0)
        saved_gradient = loss.grad_fn.saved_tensors[0]
        version, before = saved_gradient._version, saved_gradient.clone()
        other = (leaf_copy(hr) * saved_gradient).sum()
        (factor * loss).backward()
        assert (saved_gradient._version > version) == KNOWS_LAST_BACKWARD
        assert _noticed(other.backward) == KNOWS_LAST_BACKWARD
        assert KNOWS_LAST_BACKWARD or torch.equal(saved_gradient, before)


@pytest.mark.skipif(not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="torch 2.8 or later")
@pytest.mark.parametrize(
    "keep", [lambda x: x, lambda x: x.detach(), lambda x: x.view_as(x)], ids=["it", "data", "view"]
)
def test_what_a_hook_keeps_does_not_change(fused, keep):
    """A hook of saved tensors may keep what it packs, to look at it later: the gradient then has memory of its own."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, fused.device)
    kept = []

    def pack(tensor):
        kept.append(keep(tensor))
        return tensor

    a, b = leaf_copy(sr), leaf_copy(sr)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = fused.pspl_loss(a, hr, 1.0)
    (before,) = (tensor.clone() for tensor in kept)
    (3 * loss).backward()
    assert torch.equal(kept[0], before)
    assert a.grad.data_ptr() != kept[0].data_ptr()
    (3 * fused.pspl_loss(b, hr, 1.0)).backward()
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("distance", ["l2", "charbonnier"])
def test_change_after_forward_is_never_a_wrong_gradient(fused, distance):
    """Distances that may need an image again notice that it has changed, or did not need it."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, fused.device)
    a, b = leaf_copy(sr), leaf_copy(sr)
    fused.pspl_loss(b, hr, 1.0, distance=distance).backward()
    target = hr.clone()
    loss = fused.pspl_loss(a, target, 1.0, distance=distance)
    target.zero_()
    if not _noticed(loss.backward):
        assert torch.equal(a.grad, b.grad)


def test_step_tensor_may_change_after_forward(backend):
    """A schedule kept as a tensor is advanced in place between forward and backward."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, backend.device)
    for distance in DISTANCES:
        a, b = leaf_copy(sr), leaf_copy(sr)
        step = torch.tensor(1.0, device=backend.device)
        backend.pspl_loss(b, hr, 1.0, distance=distance).backward()
        loss = backend.pspl_loss(a, hr, step, distance=distance)
        step += 5
        loss.backward()
        assert torch.equal(a.grad, b.grad)


def test_step_tensor_of_less_precision(backend):
    """delta is not rounded to the dtype of a float32 step when the images are float64."""
    sr, hr = distinct_pair(device=backend.device)
    step = torch.tensor(1.5, device=backend.device)
    got, wanted = (backend.pspl_loss(sr, hr, s, alpha=0.7, beta=0.3) for s in (step, 1.5))
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=0)


@pytest.mark.parametrize("distance", ["l2", "charbonnier"])
def test_second_derivative_is_at_the_step_of_the_forward_pass(backend, distance):
    """The same with create_graph=True, where the map may be made again: it must be the one of the forward pass."""
    sr, hr = distinct_pair(device=backend.device)
    a, b = leaf_copy(sr), leaf_copy(sr)
    step = torch.tensor(1.0, dtype=torch.float64, device=backend.device)
    loss = backend.pspl_loss(a, hr, step, distance=distance)
    step += 5
    grads = []
    if not _noticed(lambda: grads.extend(torch.autograd.grad(loss, a, create_graph=True))):
        backend.pspl_loss(b, hr, 1.0, distance=distance).backward()
        torch.testing.assert_close(grads[0].detach(), b.grad, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("distance", DISTANCES)
def test_autocast(backend, distance, dtype):
    """Inside an autocast region nothing becomes less exact: not a bit changes, forward or backward."""
    if backend.device.type == "cpu" and not torch.amp.is_autocast_available("cpu"):
        pytest.skip("no autocast on this CPU")
    sr, hr = distinct_pair((1, 2, 13, 14), torch.float32, backend.device)
    plain, cast = leaf_copy(sr), leaf_copy(sr)
    loss = backend.pspl_loss(plain, hr, 1.0, distance=distance)
    loss.backward()
    with torch.autocast(backend.device.type, dtype=dtype):
        inside = backend.pspl_loss(cast, hr, 1.0, distance=distance)
        inside.backward()
        m_s = backend.similarity_map(sr, hr)
    assert inside.dtype == torch.float32
    assert torch.equal(loss, inside)
    assert torch.equal(plain.grad, cast.grad)
    assert torch.equal(m_s, backend.similarity_map(sr, hr))


def test_autocast_network(backend):
    """The usual case: the network's output comes out of the region in bfloat16, the target is float32."""
    sr, hr = distinct_pair((2, 3, 9, 10), torch.float32, backend.device)
    layer = torch.nn.Conv2d(3, 3, 1).to(backend.device)
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        output = layer(sr)
        output.retain_grad()
        loss = backend.pspl_loss(output, hr, 1.0)
    assert output.dtype == torch.bfloat16
    loss.backward()
    expected = oracle.pspl(output.detach().cpu().double().numpy(), hr.cpu().double().numpy(), 1.0)
    # An untrained layer moves the whole image away from its target.
    tolerances.assert_loss(loss, expected)
    tolerances.assert_gradient(output.grad, expected.grad_sr, torch.float32)
    assert layer.weight.grad.abs().sum() > 0
