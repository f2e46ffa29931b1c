"""Exported and traced programs train like the code that they were made of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pspl_cuda
from helpers.cases import distinct_pair, leaf_copy
from pspl_cuda import PSPLLoss
from pspl_cuda.config import DISTANCES


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of whatever Python they have seen
        yield


def images(shape=(2, 3, 12, 13), device="cpu"):
    return distinct_pair(shape, torch.float32, device)


class NetworkAndLoss(nn.Module):
    def __init__(self, backend, **keywords):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Conv2d(3, 3, 3, padding=1)
        self.backend, self.keywords = backend.name, keywords

    def forward(self, low, high):
        return pspl_cuda.pspl_loss(self.network(low), high, 1.0, backend=self.backend, **self.keywords)


def parameter_gradients(program, pair):
    module = program if isinstance(program, nn.Module) else None
    module.zero_grad()
    value = program(*pair)
    value.mean().backward()
    return [value.detach(), *(parameter.grad.clone() for parameter in module.parameters())]


def assert_same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


slow_reference = pytest.mark.deep_on("reference")


@slow_reference
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("with_grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(
    "keywords", [{}, {"distance": "l2", "reduction": "none"}, {"distance": "charbonnier"}], ids=str
)
def test_export(dispatched, keywords, with_grad, strict):
    """A program that was exported with or without gradients trains like the network that it was made of."""
    module = NetworkAndLoss(dispatched, **keywords).to(dispatched.device)
    pair = images(device=dispatched.device)
    with torch.set_grad_enabled(with_grad):
        exported = torch.export.export(module, pair, strict=strict)
    assert_same(parameter_gradients(exported.module(), pair), parameter_gradients(module, pair))


@slow_reference
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_for_other_sizes(dispatched, strict):
    module = NetworkAndLoss(dispatched).to(dispatched.device)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    pair = images(device=dispatched.device)
    exported = torch.export.export(module, pair, dynamic_shapes=(sizes, sizes), strict=strict)
    for shape in ((3, 3, 20, 21), (2, 3, 40, 9)):
        pair = images(shape, device=dispatched.device)
        assert_same(parameter_gradients(exported.module(), pair), parameter_gradients(module, pair))


@slow_reference
@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_a_saved_program_with_statistics(dispatched, decomposed, tmp_path):
    """The program has the differentiable operator, as exported and decomposed; saved and loaded, it trains and has a PSNR."""
    module = NetworkAndLoss(dispatched, return_stats=True, data_range=2.0).to(dispatched.device)
    pair = images(device=dispatched.device)
    exported = torch.export.export(module, pair)
    if decomposed:
        exported = exported.run_decompositions({})
    if dispatched.fused:
        operators = {node.target for node in exported.graph.nodes if str(node.target).startswith("pspl_cuda")}
        assert operators == {torch.ops.pspl_cuda.loss.default}
    torch.export.save(exported, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    results = []
    for run in (program, module):
        run.zero_grad()
        loss, stats = run(*pair)
        loss.backward()
        results.append((loss.detach(), *stats[:4], stats.psnr, *(p.grad.clone() for p in run.parameters())))
    assert isinstance(stats, pspl_cuda.PSPLStats)
    assert_same(*results)


@pytest.mark.deep  # a minute of compiling C++
@pytest.mark.not_on("reference")  # no more than other operations of torch
def test_aot_inductor_with_statistics(dispatched, tmp_path):
    module = NetworkAndLoss(dispatched, return_stats=True).to(dispatched.device)
    pair = images(device=dispatched.device)
    with torch.no_grad():
        exported = torch.export.export(module, pair)
        path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "program.pt2"))
        loss, stats = torch._inductor.aoti_load_package(path)(*pair)
        expected_loss, expected_stats = module(*pair)
    assert_same((loss, *stats[:4], stats.psnr), (expected_loss, *expected_stats[:4], expected_stats.psnr))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_of_the_module(dispatched, strict):
    """PSPLLoss becomes the loss at the step of its next call, and keeps its own count."""
    loss = PSPLLoss(start_iteration=999, backend=dispatched.name)
    sr, hr = images(device=dispatched.device)
    program = torch.export.export(loss, (leaf_copy(sr), hr), strict=strict).module()
    assert loss.iteration == 999
    a, b = leaf_copy(sr), leaf_copy(sr)
    value, expected = program(a, hr), loss(b, hr)
    value.backward()
    expected.backward()
    assert loss.iteration == 1000
    assert_same((value, a.grad), (expected, b.grad))


@pytest.mark.parametrize("distance", DISTANCES)
def test_jit_trace(dispatched, distance):
    sr, hr = images(device=dispatched.device)

    def loss(a, b):
        return dispatched.pspl_loss(a, b, 1.0, distance=distance)

    for example in (sr, leaf_copy(sr)):
        traced = torch.jit.trace(loss, (example, hr))
        a, b = leaf_copy(sr), leaf_copy(sr)
        traced(a, hr).backward()
        loss(b, hr).backward()
        assert torch.equal(a.grad, b.grad)


@slow_reference
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_make_fx(dispatched, distance, mode):
    """Both a loss that is differentiated later, and a gradient within the program."""
    sr, hr = images(device=dispatched.device)

    def loss(a, b):
        return dispatched.pspl_loss(a, b, 1.0, distance=distance)

    def gradient(a, b):
        return torch.autograd.grad(2 * loss(a, b), a)[0]

    (expected,) = torch.autograd.grad(loss(a := leaf_copy(sr), hr), a)
    for example in (sr, leaf_copy(sr)):
        program = make_fx(loss, tracing_mode=mode)(example, hr)
        (got,) = torch.autograd.grad(program(a := leaf_copy(sr), hr), a)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    program = make_fx(gradient, tracing_mode=mode)(leaf_copy(sr), hr)
    torch.testing.assert_close(program(leaf_copy(sr), hr), 2 * expected, rtol=1e-6, atol=1e-9)


def test_traced_loss(backend):
    """step is an input of the program."""
    if backend.name == "emulated":
        pytest.skip("PSPLLoss runs on the package's own backends")
    sr, hr = distinct_pair((1, 3, 9, 10), torch.float32, backend.device)
    criterion = PSPLLoss(backend=backend.name)
    traced = torch.jit.trace(criterion, (leaf_copy(sr), hr, torch.tensor(1.0)))
    for step in (1.0, 2.0):
        results = []
        for run in (traced, criterion):
            image = leaf_copy(sr)
            loss = run(image, hr, torch.tensor(step))
            results += [(loss.detach(), *torch.autograd.grad(loss, image))]
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-9)
