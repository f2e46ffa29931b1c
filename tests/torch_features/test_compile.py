"""torch.compile: no graph breaks, the results of eager mode, and few graphs however sizes, schedule and keywords change."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import pspl_cuda
from helpers import backends, tolerances
from helpers.cases import distinct_pair, leaf_copy, smooth_pair
from helpers.drawn import PACES, WINDOWS, pair_recipes
from pspl_cuda import PSPLLoss
from pspl_cuda._build import numbers
from pspl_cuda.config import DISTANCES

# torch 2.4 compiles every number in.
FLOATS_BECOME_SYMBOLS = not getattr(torch._dynamo.config, "specialize_float", False)
STEPS = (0.5, 0.6, 0.7, 2.0, 3.5, 100.0)


@pytest.fixture
def compiled():
    """Compile a function with a counter of its graphs; everything before it is forgotten."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    yield lambda function, fullgraph=True, **options: (
        torch.compile(function, fullgraph=fullgraph, backend=counter, **options),
        counter,
    )
    torch._dynamo.reset()


@pytest.mark.deep_on("reference")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile(dispatched, compiled, distance, reduction):
    """fullgraph: no break. Loss, statistics and gradients are those of eager mode."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, dispatched.device)
    kwargs = {"distance": distance, "reduction": reduction, "return_stats": True}
    function, counter = compiled(lambda a, b: dispatched.pspl_loss(a, b, 1.0, **kwargs))
    results = []
    for run in (function, lambda a, b: dispatched.pspl_loss(a, b, 1.0, **kwargs)):
        a, b = leaf_copy(sr), leaf_copy(hr)
        loss, stats = run(a, b)
        results.append((loss.detach(), *stats[:4], *torch.autograd.grad(loss.sum() * 3, (a, b))))
    assert counter.frame_count == 1
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=1e-8)


def test_compile_maps(dispatched, compiled):
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, dispatched.device)
    function, counter = compiled(
        lambda a, b: (dispatched.similarity_map(a, b), dispatched.attention_map(a, b, 1.0, gamma=3.0))
    )
    m_s, m_a = function(sr, hr)
    assert counter.frame_count == 1
    torch.testing.assert_close(m_s, dispatched.similarity_map(sr, hr), rtol=0, atol=1e-6)
    torch.testing.assert_close(m_a, dispatched.attention_map(sr, hr, 1.0, gamma=3.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_compile_with_a_step_tensor(dispatched, compiled, where):
    """As the schedule advances, nothing is compiled again."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, dispatched.device)
    function, counter = compiled(lambda a, b, step: dispatched.pspl_loss(a, b, step))
    a = leaf_copy(sr)
    for value in (0.5, 0.6, 0.7, 2.0, 0.0):
        step = torch.tensor(value, device=dispatched.device if where == "device" else "cpu")
        loss = function(a, hr, step)
        loss.backward()
        torch.testing.assert_close(loss, dispatched.pspl_loss(a, hr, value), rtol=2e-6, atol=1e-30)
    assert counter.frame_count == 1


def test_compile_with_a_step_number(dispatched, compiled):
    """A number is compiled in at first, and becomes a symbol when it changes: two graphs for a whole training."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, dispatched.device)
    function, counter = compiled(lambda a, b, step: dispatched.pspl_loss(a, b, step))
    a = leaf_copy(sr)
    for value in STEPS:
        loss = function(a, hr, value)
        loss.backward()
        torch.testing.assert_close(loss, dispatched.pspl_loss(a, hr, value), rtol=2e-6, atol=1e-30)
    assert counter.frame_count <= (2 if FLOATS_BECOME_SYMBOLS else len(STEPS))


@pytest.mark.deep_on("reference")
def test_compile_with_changing_shapes(dispatched, compiled):
    """Validation images have many sizes: one more graph, with symbolic sizes."""
    function, counter = compiled(lambda a, b: dispatched.pspl_loss(a, b, 1.0, padding="reflect"))
    for height, width in ((9, 10), (12, 17), (20, 33), (31, 16)):
        sr, hr = distinct_pair((1, 2, height, width), torch.float32, dispatched.device)
        torch.testing.assert_close(
            function(sr, hr), dispatched.pspl_loss(sr, hr, 1.0, padding="reflect"), rtol=2e-6, atol=1e-8
        )
    assert counter.frame_count <= 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compile_mixed_dtypes_and_layouts(dispatched, compiled, layout):
    """The fake kernels promise the dtypes and strides that the real ones deliver."""
    sr, hr = distinct_pair((2, 3, 9, 10), torch.float16, dispatched.device)
    hr = hr.float().to(memory_format=layout)
    function, _ = compiled(lambda a, b: dispatched.pspl_loss(a, b, 1.0, distance="charbonnier"))
    results = []
    for run in (function, lambda a, b: dispatched.pspl_loss(a, b, 1.0, distance="charbonnier")):
        a, b = leaf_copy(sr.to(memory_format=torch.channels_last)), leaf_copy(hr)
        results.append(torch.autograd.grad(run(a, b), (a, b)))
    for got, wanted in zip(*results, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.not_on("reference")  # slow to compile, and without fake kernels
@pytest.mark.parametrize("distance", ["l1", *(pytest.param(d, marks=pytest.mark.deep) for d in DISTANCES if d != "l1")])
def test_compile_with_inductor(dispatched, distance):
    """The default compiler checks at run time that strides are what the fake kernels said."""
    torch._dynamo.reset()
    sr, hr = distinct_pair((2, 3, 9, 10), torch.float16, dispatched.device)
    # The two gradients have these layouts, which torch 2.4 can't write in one loop, and says so by an AssertionError.
    layout = torch.contiguous_format if numbers(torch.__version__) > (2, 4) else torch.channels_last
    sr, hr = sr.to(memory_format=torch.channels_last), hr.float().to(memory_format=layout)

    def run(a, b):
        return dispatched.pspl_loss(a * 0.9, b, 1.0, distance=distance)

    results = []
    for function in (run, torch.compile(run, fullgraph=True)):
        a, b = leaf_copy(sr), leaf_copy(hr)
        loss = function(a, b)
        results.append((loss.detach(), *torch.autograd.grad(loss, (a, b))))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=5e-3, atol=1e-6)
    torch.set_flush_denormal(False)  # what torch 2.4 compiles sets it when it is loaded


def test_compile_a_training_step(dispatched, compiled):
    """Network and loss in one graph, under no_grad targets, several iterations."""
    sr, hr = distinct_pair((2, 3, 9, 10), torch.float32, dispatched.device)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1).to(dispatched.device)
    function, counter = compiled(lambda x, y, step: dispatched.pspl_loss(layer(x), y, step))
    for i in range(3):
        step = torch.tensor(float(i + 1), device=dispatched.device)
        layer.zero_grad()
        function(sr, hr, step).backward()
        got = layer.weight.grad.clone()
        layer.zero_grad()
        dispatched.pspl_loss(layer(sr), hr, step).backward()
        torch.testing.assert_close(got, layer.weight.grad, rtol=1e-4, atol=1e-7)
    assert counter.frame_count == 1


# ---------------------------------------------------------------- how often

# Batch, height and width change, one by one and together, over and under the window and with prime sizes.
CHANGES = [
    *((2, 16, 16), (2, 17, 16), (2, 18, 16), (3, 16, 20), (4, 24, 24), (2, 30, 31)),
    *((5, 32, 32), (6, 20, 16), (2, 40, 16), (7, 16, 44), (3, 9, 9), (8, 50, 16)),
]
# In graphs: one for the first sizes, one for symbolic sizes, and one to spare.
FEW = 3
WAYS = {"plain": {}, "mark_dynamic": {}, "dynamic=True": {"dynamic": True}}
LOSSES = {
    "function": ({}, torch.float32),
    "function, mixed, per pixel": ({"distance": "l2", "reduction": "none"}, torch.bfloat16),
    "function, float16, both images": ({"distance": "charbonnier", "padding": "reflect"}, torch.float16),
    "PSPLLoss": ({"iterations_per_step": 1}, torch.float32),
    "PSPLLoss, mixed, weighted sum": ({"distance": "l2", "reduction": "sum", "loss_weight": 0.5}, torch.bfloat16),
}
QUICK = ("function", "PSPLLoss, mixed, weighted sum")

slow_reference = pytest.mark.not_on("reference")  # slow to compile; other tests have it


@slow_reference
@pytest.mark.parametrize("way", [way if way == "plain" else pytest.param(way, marks=pytest.mark.deep) for way in WAYS])
@pytest.mark.parametrize(
    "loss", [pytest.param(loss, marks=[] if loss in QUICK else pytest.mark.deep) for loss in LOSSES]
)
def test_graphs_for_changing_sizes(dispatched, compiled, loss, way):
    """With gradient: a constant 1 / numel in the graph compiles again for every size."""
    keywords, dtype = LOSSES[loss]
    if loss.startswith("PSPLLoss"):
        eager = PSPLLoss(**keywords, start_iteration=1, backend=dispatched.name)
        function, counter = compiled(PSPLLoss(**keywords, start_iteration=1, backend=dispatched.name), **WAYS[way])
    else:

        def eager(a, b):
            return dispatched.pspl_loss(a, b, 1.0, **keywords)

        function, counter = compiled(eager, **WAYS[way])
    for batch, height, width in CHANGES:
        pair = smooth_pair((batch, 3, height, width), dtypes=(dtype, torch.float32), device=dispatched.device)
        results = []
        for run in (function, eager):
            a, b = (image.clone() for image in pair)
            if way == "mark_dynamic" and run is function:
                for image in (a, b):
                    for dim in (0, 2, 3):
                        torch._dynamo.mark_dynamic(image, dim)
            a.requires_grad_()
            b.requires_grad_("both" in loss)
            value = run(a, b)
            value.mean().backward()
            results += [(value.detach(), a.grad, b.grad if "both" in loss else None)]
        for got, wanted in zip(*results, strict=True):
            if wanted is not None:
                torch.testing.assert_close(got, wanted, rtol=2 * torch.finfo(got.dtype).eps + 2e-6, atol=1e-7)
    assert counter.frame_count <= FEW


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=[pytest.mark.deep, slow_reference])])
@pytest.mark.parametrize(
    "name",
    ["gamma", *(pytest.param(n, marks=slow_reference) for n in ("data_range", "beta", "alpha", "sigma", "step"))],
)
def test_graphs_for_changing_numbers(dispatched, compiled, name, dynamic):
    """A keyword from a schedule of its own becomes a symbol, for which its checks must compile. A float of an operator is a
    constant of the graph, so each new value compiles again; alpha, beta and the step become a tensor."""
    is_input = name in ("alpha", "beta", "step") and FLOATS_BECOME_SYMBOLS
    sr, hr = smooth_pair((2, 3, 16, 17), device=dispatched.device)

    def loss(a, b, value):
        return dispatched.pspl_loss(a, b, value) if name == "step" else dispatched.pspl_loss(a, b, 1.0, **{name: value})

    function, counter = compiled(loss, dynamic=dynamic)
    for i in range(6 if is_input else 3):
        results = []
        for run in (function, loss):
            a = leaf_copy(sr)
            value = run(a, hr, 1.0 + i / 4)
            results.append((value.detach(), *torch.autograd.grad(value, a)))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=3e-6, atol=1e-8)
    assert counter.frame_count <= (FEW if is_input else 4)


def test_alpha_0_in_a_graph(dispatched, compiled):
    """The schedule is off whatever the step, as in eager mode: 0 * inf must not become NaN."""
    sr, hr = smooth_pair((1, 1, 9, 9), device=dispatched.device)
    step = torch.tensor(float("inf"), device=dispatched.device)
    function, _ = compiled(lambda a, b, step: dispatched.pspl_loss(a, b, step, alpha=0.0, beta=0.7))
    torch.testing.assert_close(function(sr, hr, step), dispatched.pspl_loss(sr, hr, step, alpha=0.0, beta=0.7))


@functools.cache
def _errors_pass_through_graphs():
    """Whether fullgraph repeats the sentence of an error. In torch 2.6 it quotes the line of the source that raised it."""

    def fail(x):
        raise ValueError(f"{x.dim()} dimensions")

    try:
        torch.compile(fail, fullgraph=True, backend="eager")(torch.zeros(1, 1))
    except Exception as error:
        return "2 dimensions" in str(error)


@pytest.mark.parametrize("bad", [{"gamma": -1.0}, {"data_range": 0.0}], ids=str)
def test_bad_numbers_are_refused_in_a_graph(dispatched, compiled, bad):
    """With a sentence, as without a compiler. Where a graph can't repeat it, Python does unless fullgraph forbids it."""
    sr, hr = smooth_pair((1, 1, 9, 9), device=dispatched.device)
    fullgraph = _errors_pass_through_graphs()
    function, _ = compiled(lambda a, b, **keywords: dispatched.pspl_loss(a, b, 1.0, **keywords), fullgraph)
    with pytest.raises(Exception, match=f"{next(iter(bad))} is .*; expected"):
        function(sr, hr, **bad)


@settings(max_examples=max(1, settings().max_examples // 8))
@given(
    recipe=pair_recipes(largest=(2, 3, 20, 20)),
    window=WINDOWS,
    pace=PACES,
    distance=st.sampled_from(DISTANCES),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    needs_hr=st.booleans(),
    is_output=st.booleans(),
    dynamic=st.sampled_from([None, True]),
)
def test_compile_drawn_calls(recipe, window, pace, distance, reduction, needs_hr, is_output, dynamic):
    """Layouts, dtypes and keywords: values, dtypes and strides of eager mode."""
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    pair = recipe.make()

    def function(a, b):
        keywords = {"distance": distance, "reduction": reduction, "backend": "cpu", **window, **pace}
        return pspl_cuda.pspl_loss(0.9 * a if is_output else a, b, 1.0, **keywords)

    torch._dynamo.reset()
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)):
        a, b = pair[0].detach().requires_grad_(), pair[1].detach().requires_grad_(needs_hr)
        loss = run(a, b)
        gradients = torch.autograd.grad(loss, [a, b][: 1 + needs_hr], torch.full_like(loss, 3.0))
        results.append([loss.detach(), *gradients])
    # A compiled graph computes alpha * step + beta in float64: delta, 1 / delta and its product with the constant then have 3
    # roundings of the kernel's 6. Where they differ, so do, in both, the roundings at a pixel of the exponent's root, which
    # counts twice, and of its square. Together 12 + 6 + 2 * 3 roundings in the exponent, twice those of delta.
    delta, compute = pace["alpha"] + pace["beta"], tolerances.compute_dtype(*pair)
    exponent = tolerances.largest_exponent(delta, pace["mu"]) * (1 if distance == "l1" else 2)
    delta_error = 2 * exponent * tolerances.rounded_delta(delta, compute)
    for i, (wanted, got) in enumerate(zip(*results, strict=True)):
        assert got.dtype == wanted.dtype
        assert i > 0 or got.stride() == wanted.stride()
        # A product of 3 and the gradient is rounded in another order.
        tolerance = 4 * torch.finfo(got.dtype).eps + delta_error
        atol = tolerance * wanted.abs().max().item() + torch.finfo(got.dtype).tiny
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("distance", DISTANCES)
def test_compiled_autograd(dispatched, distance):
    """The backward pass is a graph as well."""
    sr, hr = distinct_pair((1, 2, 9, 10), torch.float32, dispatched.device)

    def gradients():
        a, b = leaf_copy(sr), leaf_copy(hr)
        (3 * dispatched.pspl_loss(a.sin(), b, 1.0, distance=distance)).backward()
        return a.grad, b.grad

    torch._dynamo.reset()
    enable = getattr(compiled_autograd, "_enable", None) or compiled_autograd.enable  # its name until torch 2.5
    with enable(torch.compile(backend="eager", fullgraph=True)):
        got = gradients()
    torch._dynamo.reset()
    for a, b in zip(got, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
