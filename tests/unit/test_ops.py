"""The operators: schemas and fake kernels, what they refuse, their derivatives."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

import pspl_cuda
from helpers import tolerances
from helpers.cases import distinct_pair, leaf_copy
from pspl_cuda.config import DEFAULTS, DISTANCES, PADDINGS, REDUCTIONS, check_config


def _devices():
    info = pspl_cuda.backend_info()
    return [
        name for name in ("cpu", "cuda") if info[name]["available"] and (name == "cpu" or torch.cuda.is_available())
    ]


@pytest.fixture(params=["cpu", "cuda"])
def operator_device(request):
    if request.param not in _devices():
        pytest.skip(f"no {request.param} operators here")
    return torch.device(request.param)


def _map_arguments(padding="zeros", window_size=11, **_):
    """The arguments of an operator by keyword, from ``constants`` to ``padding``."""
    config = check_config(DEFAULTS._replace(padding=padding, window_size=window_size))
    return {
        "constants": config.constants(),
        "window_size": config.window_size,
        "padding": PADDINGS.index(config.padding),
    }


def _loss_arguments(distance="l1", reduction="mean", with_stats=False, **sample):
    """The arguments of the operator ``loss`` by keyword, from ``constants`` on."""
    return {
        **_map_arguments(**sample),
        "distance": DISTANCES.index(distance),
        "reduction": REDUCTIONS.index(reduction),
        "loss_weight": 1.0,
        "with_stats": with_stats,
    }


SAMPLES = [
    {"shape": (2, 3, 9, 10), "dtypes": (torch.float32, torch.float32)},
    {"shape": (3, 9, 10), "dtypes": (torch.float16, torch.float32), "distance": "l2"},
    {"shape": (1, 2, 3, 5, 6), "dtypes": (torch.bfloat16, torch.bfloat16), "reduction": "none", "padding": "reflect"},
    {"shape": (1, 1, 1, 1), "dtypes": (torch.float64, torch.float32), "distance": "charbonnier", "window_size": 3},
    {"shape": (2, 3, 9, 10), "dtypes": (torch.float32, torch.float16), "channels_last": True, "padding": "replicate"},
]


def _sample_pair(sample, device):
    sr, hr = distinct_pair(sample["shape"], device=device)
    sr, hr = sr.to(sample["dtypes"][0]), hr.to(sample["dtypes"][1])
    return (sr.to(memory_format=torch.channels_last), hr) if sample.get("channels_last") else (sr, hr)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample["shape"]))
def test_opcheck_loss(operator_device, sample, as_tensor):
    """Schema, fake kernel, dispatch and derivative of the operators, checked by PyTorch."""
    sr, hr = _sample_pair(sample, operator_device)
    step = torch.tensor(1.0, device=operator_device) if as_tensor else None
    wide = {torch.float16, torch.float64} & set(sample["dtypes"])
    saved = tolerances.compute_dtype(sr, hr) if wide else sr.dtype
    for stats in (False, True):
        arguments = _loss_arguments(**sample, with_stats=stats)
        for image in (sr, leaf_copy(sr)):
            torch.library.opcheck(torch.ops.pspl_cuda.loss.default, (image, hr, step, 1.0), arguments)
        torch.library.opcheck(
            torch.ops.pspl_cuda.loss_and_gradient.default, (sr, hr, step, 1.0), {**arguments, "gradient_dtype": saved}
        )


@pytest.mark.parametrize("attention", [False, True], ids=["similarity", "attention"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample["shape"]))
def test_opcheck_map(operator_device, sample, attention):
    sr, hr = _sample_pair(sample, operator_device)
    arguments = {**_map_arguments(**sample), "attention": attention}
    torch.library.opcheck(torch.ops.pspl_cuda.map.default, (sr, hr, None, 1.0), arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 10), (1, 1, 1, 1), (1, 1, 1, 4099)], ids=str)
def test_opcheck_scale_gradient(operator_device, shape, dtype):
    saved_gradient = distinct_pair(shape, torch.float32, operator_device)[0]
    grad_output = torch.tensor(2.5, device=operator_device)
    for saved in {saved_gradient, saved_gradient.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)}:
        for sign in (1, -1):
            torch.library.opcheck(torch.ops.pspl_cuda.scale_gradient.default, (saved, grad_output, sign, dtype))
            got = torch.ops.pspl_cuda.scale_gradient(saved, grad_output, sign, dtype)
            assert torch.equal(got, (saved.float() * (2.5 * sign)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 10), (1, 1, 1, 1), (1, 1, 1, 70001)], ids=str)
def test_opcheck_scale_gradient_in_place(operator_device, shape, dtype):
    saved_gradient = distinct_pair(shape, dtype, operator_device)[0]
    for value in (1.0, 2.5):
        grad_output = torch.tensor(value, device=operator_device)
        torch.library.opcheck(torch.ops.pspl_cuda.scale_gradient_.default, (saved_gradient.clone(), grad_output))
        expected = torch.ops.pspl_cuda.scale_gradient(saved_gradient, grad_output, 1, dtype)
        torch.ops.pspl_cuda.scale_gradient_(saved_gradient, grad_output)
        assert torch.equal(saved_gradient, expected)


def test_scale_gradient_rounds_once(operator_device):
    """The product is formed in float32 and rounded to 16 bits last."""
    saved_gradient = torch.tensor([[[1e-9, -3e-9]]], device=operator_device)
    grad_output = torch.tensor(65536.0, device=operator_device)
    got = torch.ops.pspl_cuda.scale_gradient(saved_gradient, grad_output, 1, torch.float16)
    assert torch.equal(got.cpu(), (saved_gradient.double() * 65536).half().cpu())


def test_operators_refuse_what_python_would_have(operator_device):
    """Called past the checks, they still raise instead of reading out of bounds."""
    sr, hr = distinct_pair((1, 2, 5, 6), torch.float32, operator_device)

    def forward(a, b, step=None, **changes):
        arguments = {**_loss_arguments(with_stats=True), "gradient_dtype": torch.float32, **changes}
        torch.ops.pspl_cuda.loss_and_gradient(a, b, step, 1.0, **arguments)

    forward(sr, hr)
    for a, b in ((sr, hr[..., 1:]), (sr[0, 0], hr[0, 0]), (sr[:0], hr[:0]), (sr.int(), hr)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            forward(a, b)
    wrong = [{"window_size": size} for size in (10, 0, -1, 1001)]
    for name, choices in (("padding", PADDINGS), ("distance", DISTANCES)):
        wrong += [{name: len(choices)}, {name: -1}]
    for changes in (
        *wrong,
        {"reduction": 3},
        {"reduction": -1},
        {"gradient_dtype": torch.float64},
        {"gradient_dtype": torch.float16},
        {"constants": DEFAULTS.constants()[:-1]},
        {"constants": (*DEFAULTS.constants(), 1.0)},
        {"loss_weight": 0.0},
        {"loss_weight": math.nan},
    ):
        with pytest.raises(RuntimeError):
            forward(sr, hr, **changes)
    with pytest.raises(RuntimeError):
        forward(sr, hr, step=torch.ones(2, device=operator_device))
    one = torch.ones((), device=operator_device)
    for saved, grad_output, sign, dtype in (
        (sr[..., ::2], one, 1, torch.float32),
        (sr, one, 1, torch.float64),
        (sr.double(), one.double(), 1, torch.float64),
        (sr.half(), one, 1, torch.float16),
        (sr.bfloat16(), one, 1, torch.float32),
        (sr, torch.ones(2, device=operator_device), 1, torch.float32),
        (sr, one, 2, torch.float32),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.pspl_cuda.scale_gradient(saved, grad_output, sign, dtype)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample["shape"]))
def test_the_operator_itself_differentiates(operator_device, sample):
    """An exported or traced program calls the operator without the package's checks."""
    sr, hr = _sample_pair(sample, operator_device)
    a, b, c, d = leaf_copy(sr), leaf_copy(hr), leaf_copy(sr), leaf_copy(hr)
    result, stats = torch.ops.pspl_cuda.loss(a, b, None, 1.0, **_loss_arguments(**sample, with_stats=True))
    assert not stats.requires_grad
    names = ("distance", "padding", "window_size", "reduction")
    loss = pspl_cuda.pspl_loss(c, d, 1.0, **{name: sample[name] for name in names if name in sample})
    for value in (result, loss):
        value.backward(torch.full_like(value, 3.0))
    assert torch.equal(result, loss)
    assert torch.equal(a.grad, c.grad)
    assert torch.equal(b.grad, d.grad)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: str(sample["shape"]))
def test_loss_and_gradient_differentiates(operator_device, sample):
    """A graph of make_fx calls it. Its outputs are the caller's: backward reuses the memory of neither."""
    sr, hr = _sample_pair(sample, operator_device)
    dtype = tolerances.compute_dtype(sr, hr)
    arguments = _loss_arguments(**sample)
    a, b = leaf_copy(sr), leaf_copy(sr)
    result, _, gradient = torch.ops.pspl_cuda.loss_and_gradient(a, hr, None, 1.0, **arguments, gradient_dtype=dtype)
    assert not gradient.requires_grad
    kept = gradient.clone()
    for value in (result, torch.ops.pspl_cuda.loss(b, hr, None, 1.0, **arguments)[0]):
        value.backward(torch.full_like(value, 3.0))
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(gradient, kept)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("distance", DISTANCES)
def test_second_derivative_of_the_operator(operator_device, distance):
    sr, hr = distinct_pair(device=operator_device)

    def second(function):
        a, b = leaf_copy(sr), leaf_copy(hr)
        (first,) = torch.autograd.grad(function(a, b), a, create_graph=True)
        return torch.autograd.grad(first.square().sum() + 0 * (a + b).sum(), (a, b))

    def operator(a, b):
        return torch.ops.pspl_cuda.loss(a, b, None, 1.0, **_loss_arguments(distance))[0]

    expected = second(lambda a, b: pspl_cuda.pspl_loss(a, b, 1.0, distance=distance, backend="reference"))
    for got, wanted in zip(second(operator), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-15)


def test_second_import_in_one_process(tmp_path):
    """Notebooks and coverage purge sys.modules. What the first import made keeps working."""
    code = """
import sys, torch, pspl_cuda
def loss_of(package):
    image = torch.linspace(0, 1, 400).reshape(1, 1, 20, 20).requires_grad_()
    return image, package.pspl_loss(image, image.detach().flip(3), 1.0)
first, loss = loss_of(pspl_cuda)
earlier = pspl_cuda
for name in [name for name in sys.modules if name.split(".")[0] == "pspl_cuda"]:
    del sys.modules[name]
import pspl_cuda
assert pspl_cuda is not earlier and pspl_cuda.backend_info() == earlier.backend_info()
second, again = loss_of(pspl_cuda)
loss.backward()
again.backward()
assert loss == again == loss_of(earlier)[1] and torch.equal(first.grad, second.grad)
assert torch.compile(loss_of, backend="eager", fullgraph=False)(pspl_cuda)[1] == loss
"""
    # Away from the sources, so that the installed package is tested.
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
