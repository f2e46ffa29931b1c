"""The public functions: bad images and steps are refused with a sentence, the same on every backend, and a backend is chosen."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.tensor as distributed
from torch.distributed.device_mesh import init_device_mesh

import pspl_cuda
from helpers.refusals import image, refused
from helpers.unusual_tensors import Subclass, nested, quantized, quietly
from pspl_cuda import PSPLLoss, _library, functional

BAD_IMAGES = {
    "shapes differ": (image(2, 3, 8, 8), image(1, 3, 8, 8), ValueError, ["sr", "hr", "(2, 3, 8, 8)", "(1, 3, 8, 8)"]),
    "dims differ": (image(1, 3, 8, 8), image(3, 8, 8), ValueError, ["sr", "hr", "(1, 3, 8, 8)", "(3, 8, 8)"]),
    "two dims": (image(8, 8), image(8, 8), ValueError, ["2 dimensions", "(8, 8)", "3 to 5"]),
    "six dims": (image(1, 1, 1, 1, 8, 8), image(1, 1, 1, 1, 8, 8), ValueError, ["6 dimensions", "3 to 5"]),
    "no dims": (torch.tensor(1.0), torch.tensor(1.0), ValueError, ["0 dimensions", "3 to 5"]),
    "empty batch": (image(0, 3, 8, 8), image(0, 3, 8, 8), ValueError, ["empty", "(0, 3, 8, 8)", "at least one pixel"]),
    "no rows": (image(1, 3, 0, 8), image(1, 3, 0, 8), ValueError, ["empty", "(1, 3, 0, 8)"]),
    "uint8 sr": (image(dtype=torch.uint8), image(), TypeError, ["sr", "torch.uint8", "float32", "sr.float() / 255"]),
    "uint8 hr": (image(), image(dtype=torch.uint8), TypeError, ["hr", "torch.uint8", "float32", "hr.float() / 255"]),
    "int64": (image(dtype=torch.int64), image(), TypeError, ["sr", "torch.int64", "float32"]),
    "bool": (image(), image(dtype=torch.bool), TypeError, ["hr", "torch.bool", "float32"]),
    "complex": (image(dtype=torch.complex64), image(), TypeError, ["sr", "torch.complex64", "float32"]),
    "float8": (image(dtype=torch.float8_e4m3fn), image(), TypeError, ["sr", "torch.float8_e4m3fn", "float32"]),
    "sparse": (image().to_sparse(), image(), TypeError, ["sr", "torch.sparse_coo", "dense", "sr.to_dense()"]),
    "sparse rows": (
        image(),
        quietly(image(8, 8).to_sparse_csr),
        TypeError,
        ["hr", "torch.sparse_csr", "hr.to_dense()"],
    ),
    "mkldnn": (image().to_mkldnn(), image(), TypeError, ["sr", "torch._mkldnn", "dense", "sr.to_dense()"]),
    "quantized": (quantized(image()), image(), TypeError, ["sr", "torch.quint8", "float32"]),
    "nested": (nested(torch.strided), image(2, 3, 8, 8), TypeError, ["sr", "nested", "one size"]),
    "jagged": (image(2, 3, 8, 8), nested(torch.jagged), TypeError, ["hr", "nested", "one size"]),
    "numpy": (image(), image().numpy(), TypeError, ["hr", "ndarray", "torch.Tensor", "[..., C, H, W]"]),
    "list": ([[0.0]], image(), TypeError, ["sr", "list", "torch.Tensor"]),
    "None": (None, image(), TypeError, ["sr", "NoneType", "torch.Tensor"]),
    "hr on meta": (image(), image().to("meta"), ValueError, ["sr", "hr", "meta", "same device"]),
}

BAD_STEPS = {
    "negative": (-1.0, ValueError, ["-1.0", "at least 0"]),
    "negative integer": (-3, ValueError, ["-3", "at least 0"]),
    "minus infinity": (-math.inf, ValueError, ["-inf", "at least 0"]),
    "nan": (math.nan, ValueError, ["nan", "at least 0"]),
    "bool": (True, TypeError, ["bool", "number", "0-dim tensor"]),
    "str": ("1", TypeError, ["str", "number"]),
    "None": (None, TypeError, ["NoneType", "number"]),
    "beyond float64": (-(10**400), ValueError, ["an integer of 1329 bits", "at least 0"]),
    "beyond printing": (-(10**5000), ValueError, ["an integer of 16610 bits", "at least 0"]),
    "one element": (torch.ones(1), ValueError, ["(1,)", "0-dim tensor"]),
    "map": (torch.ones(1, 3, 8, 8), ValueError, ["(1, 3, 8, 8)", "0-dim tensor"]),
    "bool tensor": (torch.tensor(True), TypeError, ["torch.bool", "real number"]),
    "complex tensor": (torch.tensor(1j), TypeError, ["torch.complex64", "real number"]),
    "quantized tensor": (quantized(torch.tensor(1.0)), TypeError, ["torch.quint8", "real number"]),
    "sparse tensor": (torch.tensor(1.0).to_sparse(), TypeError, ["torch.sparse_coo", "step.to_dense()"]),
    "requires grad": (torch.tensor(1.0, requires_grad=True), ValueError, ["gradient", "step.detach()"]),
    "on another device": (torch.tensor(1.0, device="meta"), ValueError, ["meta", "images' device"]),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images(backend, case):
    sr, hr, kind, fragments = BAD_IMAGES[case]
    on_device = [
        x.to(backend.device) if isinstance(x, torch.Tensor) and x.device.type != "meta" else x for x in (sr, hr)
    ]
    sentences = {
        refused(kind, fragments, backend.pspl_loss, *on_device, 1.0),
        refused(kind, fragments, backend.similarity_map, *on_device),
        refused(kind, fragments, backend.attention_map, *on_device, 1.0),
    }
    if case != "hr on meta":
        sentences.add(refused(kind, fragments, pspl_cuda.pspl_loss, sr, hr, 1.0, backend="reference"))
    assert len(sentences) == 1


@pytest.mark.parametrize("case", BAD_STEPS)
def test_step(backend, case):
    step, kind, fragments = BAD_STEPS[case]
    x = image().to(backend.device)
    sentences = {
        refused(kind, ["step", *fragments], backend.pspl_loss, x, x, step),
        refused(kind, ["step", *fragments], backend.attention_map, x, x, step),
    }
    assert len(sentences) == 1


def test_images_that_look_like_channels_last(backend):
    """[..., H, W, C] from a file or a data set is told, not refused: an image can be narrow."""
    for shape in ((64, 64, 3), (2, 64, 64, 1), (1, 2, 32, 48, 4)):
        x = image(*shape).to(backend.device)
        with pytest.warns(UserWarning, match=r"looks like channels last.*movedim"):
            backend.pspl_loss(x, x, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for shape in ((3, 64, 3), (1, 3, 64, 4), (64, 15, 3), (64, 64, 5)):
            x = image(*shape).to(backend.device)
            backend.pspl_loss(x, x, 1.0)


@pytest.mark.parametrize("value", ["yes", 1, None, torch.tensor(True)], ids=str)
def test_return_stats(backend, value):
    """Neither taken for True nor left to the operator's own words."""
    x = image().to(backend.device)
    fragments = ["return_stats", type(value).__name__, "True or False"]
    sentences = {
        refused(TypeError, fragments, backend.pspl_loss, x, x, 1.0, return_stats=value),
        refused(TypeError, fragments, pspl_cuda.pspl_loss, x, x, 1.0, return_stats=value, backend="reference"),
        refused(TypeError, fragments, PSPLLoss, return_stats=value),
    }
    assert len(sentences) == 1


def test_a_huge_step_is_infinity(backend):
    """No schedule asks for it, but it is a number of at least 0."""
    x, y = image().to(backend.device), image().to(backend.device) + 0.5
    assert torch.equal(backend.pspl_loss(x, y, 10**400), backend.pspl_loss(x, y, math.inf))


@pytest.fixture
def mesh(tmp_path):
    """One process that is a cluster of its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(distributed, "Shard"), reason="torch 2.5 or later")
def test_distributed_tensors(backend, mesh):
    """Not torch's own words about mixing tensors."""
    x = torch.rand(2, 3, 8, 8)
    sharded = distributed.distribute_tensor(x, mesh, [distributed.Shard(0)])
    step = distributed.distribute_tensor(torch.tensor(1.0), mesh)
    for sr, hr, name in ((sharded, sharded, "sr"), (sharded, x, "sr"), (x, sharded, "hr")):
        fragments = [f"{name} is a DTensor", f"{name}.to_local()", f"{name}.full_tensor()"]
        refused(TypeError, fragments, backend.pspl_loss, sr, hr, 1.0)
        refused(TypeError, fragments, backend.similarity_map, sr, hr)
        refused(TypeError, fragments, backend.attention_map, sr, hr, 1.0)
        refused(TypeError, fragments, PSPLLoss(), sr, hr)
    refused(TypeError, ["step is a DTensor", "step.full_tensor()"], backend.pspl_loss, x, x, step)
    refused(TypeError, ["step is a DTensor"], backend.attention_map, x, x, step)
    assert torch.equal(backend.pspl_loss(sharded.to_local(), x, step.to_local()), backend.pspl_loss(x, x, 1.0))


LOOKS_ODD = {
    "a lazily negated view": lambda x: torch.complex(x, -x).conj().imag,
    "a subclass": lambda x: x.clone().as_subclass(Subclass),
    "a parameter": lambda x: torch.nn.Parameter(x.clone()),
    "efficient zeros": lambda x: torch._efficientzerotensor(x.shape, device=x.device),
}


@pytest.mark.not_on("emulated")  # torch's dispatcher computes it, and the emulation has none
@pytest.mark.parametrize("kind", LOOKS_ODD)
def test_odd_tensors_are_tensors(backend, kind):
    """What torch only promises to compute has to be computed before a kernel reads memory."""
    x, y = torch.rand(1, 2, 9, 9, device=backend.device), torch.rand(1, 2, 9, 9, device=backend.device)
    odd = LOOKS_ODD[kind](x)
    plain = torch.zeros_like(x) if kind == "efficient zeros" else x
    assert backend.pspl_loss(odd, y, 1.0).item() == backend.pspl_loss(plain, y, 1.0).item()
    assert backend.pspl_loss(y, odd, 1.0).item() == backend.pspl_loss(y, plain, 1.0).item()


def test_keywords_are_keyword_only(backend):
    """A positional fourth argument is a mistake: no order of 15 constants can be remembered."""
    x = image().to(backend.device)
    with pytest.raises(TypeError):
        backend.pspl_loss(x, x, 1.0, 1.0)
    with pytest.raises(TypeError):
        backend.similarity_map(x, x, 1.0)
    with pytest.raises(TypeError):
        backend.pspl_loss(x, x)
    with pytest.raises(TypeError, match="windowsize"):
        backend.pspl_loss(x, x, 1.0, windowsize=11)


@pytest.mark.parametrize("value", [-0.7, 1.9, 300.0, 1e4])
def test_value_range_is_never_asserted(backend, value):
    """Outputs of a network overshoot, and looking would wait for the device."""
    x = image().to(backend.device)
    assert backend.pspl_loss(x + value, x, 1.0).isfinite()


# ---------------------------------------------------------------- the choice of a backend


@pytest.fixture
def forgetful(monkeypatch):
    """As after a fresh import: nothing has been warned of."""
    monkeypatch.setattr(functional, "_warned", set())
    return monkeypatch


FUNCTIONS = {
    "pspl_loss": lambda x, **keywords: pspl_cuda.pspl_loss(x, x, 1.0, **keywords),
    "similarity_map": lambda x, **keywords: pspl_cuda.similarity_map(x, x, **keywords),
    "attention_map": lambda x, **keywords: pspl_cuda.attention_map(x, x, 1.0, **keywords),
    "PSPLLoss": lambda x, **keywords: PSPLLoss(**keywords)(x, x),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_backend(function):
    names = ["'auto'", "'cuda'", "'cpu'", "'reference'"]
    refused(ValueError, ["backend", "'gpu'", *names], FUNCTIONS[function], image(), backend="gpu")
    refused(TypeError, ["backend", "int", *names], FUNCTIONS[function], image(), backend=0)
    refused(TypeError, ["backend", "NoneType", *names], FUNCTIONS[function], image(), backend=None)
    # An array compares with each of its elements.
    refused(TypeError, ["backend", "ndarray", *names], FUNCTIONS[function], image(), backend=image().numpy())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_backend_that_is_not_built(function, name, monkeypatch):
    """An order is never answered by another kernel."""
    monkeypatch.setitem(_library.reasons, name, "nvcc was not found.")
    with pytest.raises(RuntimeError, match=f"backend is '{name}'.*not available: nvcc was not found"):
        FUNCTIONS[function](image(), backend=name)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_backend_of_another_device(function, name, monkeypatch):
    monkeypatch.setitem(_library.reasons, name, None)
    refused(ValueError, ["backend", name, "meta", "auto"], FUNCTIONS[function], image().to("meta"), backend=name)


def test_cuda_backend_for_a_cpu_tensor(monkeypatch):
    monkeypatch.setitem(_library.reasons, "cuda", None)
    fragments = ["backend is 'cuda'", "sr and hr are on cpu"]
    refused(ValueError, fragments, pspl_cuda.pspl_loss, image(), image(), 1.0, backend="cuda")


def test_auto_falls_back_with_one_warning(forgetful):
    """Without a kernel, auto takes the reference, and says so once."""
    forgetful.setitem(_library.reasons, "cpu", "no compiler was found.")
    x, y = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"no compiler was found\..*backend=\"reference\"") as caught:
        loss = pspl_cuda.pspl_loss(x, y, 1.0)
    assert caught[0].filename == __file__, "the warning does not point to the caller"
    assert torch.equal(loss, pspl_cuda.pspl_loss(x, y, 1.0, backend="reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pspl_cuda.pspl_loss(x, y, 1.0)
        pspl_cuda.similarity_map(x, y)
        PSPLLoss()(x, y)


def test_auto_falls_back_on_a_device_without_kernels(forgetful):
    x = image().to("meta")
    with pytest.warns(UserWarning, match="no fused kernel for meta"):
        loss = pspl_cuda.pspl_loss(x, x, 1.0)
    assert loss.shape == ()
    assert loss.device.type == "meta"


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_fallback_warning_is_made_of_sentences(forgetful, device):
    forgetful.setitem(_library.reasons, "cpu", _library._load("_missing"))
    with pytest.warns(UserWarning, match="correct but slow") as caught:
        pspl_cuda.similarity_map(image().to(device), image().to(device))
    sentences = str(caught[0].message)
    assert re.search(
        r'\.\s+torch\.compile of the loss with backend="reference" is 2 to 5 times faster on a CPU\.', sentences
    ), sentences
    assert sentences.endswith(' Pass backend="reference" to silence this warning.')


def test_reference_by_name_is_silent(forgetful):
    forgetful.setitem(_library.reasons, "cpu", "no compiler was found.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pspl_cuda.pspl_loss(image(), image(), 1.0, backend="reference")


def test_environment_replaces_auto(forgetful):
    """PSPL_BACKEND is an order too; an explicit backend is not touched by it."""
    forgetful.setitem(_library.reasons, "cuda", "nvcc was not found.")
    forgetful.setenv("PSPL_BACKEND", "cuda")
    with pytest.raises(
        RuntimeError, match=r"^the environment variable PSPL_BACKEND is 'cuda', but .*nvcc was not found"
    ):
        pspl_cuda.pspl_loss(image(), image(), 1.0)
    forgetful.setitem(_library.reasons, "cuda", None)
    with pytest.raises(
        ValueError, match=r"^the environment variable PSPL_BACKEND is 'cuda', .* Move the images, or unset it\.$"
    ):
        pspl_cuda.pspl_loss(image(), image(), 1.0)
    pspl_cuda.pspl_loss(image(), image(), 1.0, backend="reference")

    forgetful.setenv("PSPL_BACKEND", "reference")
    forgetful.setitem(_library.reasons, "cpu", "no compiler was found.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pspl_cuda.pspl_loss(image(), image(), 1.0)

    for unknown in ("gpu", ""):
        forgetful.setenv("PSPL_BACKEND", unknown)
        with pytest.raises(ValueError, match=f"environment variable PSPL_BACKEND is {unknown!r}"):
            pspl_cuda.pspl_loss(image(), image(), 1.0)
