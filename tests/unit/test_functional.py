"""Every bad input raises the documented type. The message names the argument, what came and what is expected, in the same words
on every backend."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import pspl_cuda
from helpers.unusual_tensors import Subclass, nested, quantized, quietly
from pspl_cuda import PSPLLoss, _library, functional


def image(*shape, dtype=torch.float32):
    return torch.zeros(shape or (1, 3, 8, 8), dtype=dtype)


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

NOT_FINITE = [math.nan, math.inf]
POSITIVE = ["data_range", "sigma", "k1", "k2", "eps"]
NOT_NEGATIVE = ["alpha", "beta", "gamma"]
NUMBERS = [*POSITIVE, *NOT_NEGATIVE, "mu"]
CHOICES = {
    "distance": ["'l1'", "'l2'", "'charbonnier'"],
    "padding": ["'zeros'", "'reflect'", "'replicate'"],
    "reduction": ["'mean'", "'sum'", "'none'"],
}

BAD_KEYWORDS = [
    *((name, 0, ValueError, ["0", "above 0"]) for name in POSITIVE),
    *((name, -1.5, ValueError, ["-1.5", "above 0"]) for name in POSITIVE),
    *((name, -1.5, ValueError, ["-1.5", "at least 0"]) for name in NOT_NEGATIVE),
    *((name, bad, ValueError, [str(bad), "finite"]) for name in NUMBERS for bad in NOT_FINITE),
    *((name, 10**400, ValueError, ["an integer of 1329 bits", "finite"]) for name in NUMBERS),
    *((name, -(10**5000), ValueError, ["an integer of 16610 bits", "finite"]) for name in NUMBERS),
    *((name, "1", TypeError, ["str", "finite number"]) for name in NUMBERS),
    *((name, True, TypeError, ["bool", "finite number"]) for name in NUMBERS),
    *((name, None, TypeError, ["NoneType", "finite number"]) for name in NUMBERS),
    *(("window_size", size, ValueError, [str(size), "odd", "511"]) for size in (0, -3, 2, 10, 513)),
    ("window_size", 10**5000 + 1, ValueError, ["an integer of 16610 bits", "odd", "511"]),
    *(("window_size", size, TypeError, [type(size).__name__, "odd integer"]) for size in (11.0, "11", True, None)),
    *((name, "L1", ValueError, ["'L1'", *choices]) for name, choices in CHOICES.items()),
    *((name, "", ValueError, ["''", *choices]) for name, choices in CHOICES.items()),
    *((name, 1, TypeError, ["int", *choices]) for name, choices in CHOICES.items()),
    *((name, None, TypeError, ["NoneType", *choices]) for name, choices in CHOICES.items()),
    # Squares that leave float32 would turn into zeros or infinities in the kernels.
    ("data_range", 1e-30, ValueError, ["k1 * data_range", "1e-32", "float32"]),
    ("data_range", 1e30, ValueError, ["k1 * data_range", "1e+28", "float32"]),
    ("k2", 1e-25, ValueError, ["k2 * data_range", "1e-25", "float32"]),
    ("eps", 1e-25, ValueError, ["eps", "1e-25", "float32"]),
    # So would the numbers themselves.
    *((name, value, ValueError, [str(value), "float32"]) for name in NOT_NEGATIVE for value in (1e39, 1e-300)),
    *(("mu", value, ValueError, [str(value), "float32"]) for value in (1e39, -1e39)),
]  # fmt: skip

MAP_KEYWORDS = {
    "similarity_map": {"data_range", "window_size", "sigma", "k1", "k2", "padding"},
    "attention_map": {
        *("alpha", "beta", "gamma", "mu"),
        *("data_range", "window_size", "sigma", "k1", "k2", "padding"),
    },
}


def shown(value):
    return "huge" if isinstance(value, int) and value.bit_length() > 64 else str(value)


def refused(kind, fragments, function, *args, **kwargs):
    """The sentence that comes with the promised exception; not with a subclass, and not from deep inside torch."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        function(*args, **kwargs)
    assert caught.type is kind, f"{caught.type.__name__} instead of {kind.__name__}: {caught.value}"
    sentence = str(caught.value)
    for fragment in fragments:
        assert fragment in sentence
    assert re.search(r"expected|Call|[Pp]ass ", sentence), sentence
    assert sentence.endswith("."), sentence
    return sentence


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


@pytest.mark.parametrize(("name", "value", "kind", "fragments"), BAD_KEYWORDS, ids=lambda value: shown(value)[:30])
def test_keywords(backend, name, value, kind, fragments):
    x = image().to(backend.device)
    sentences = {refused(kind, [name, *fragments], backend.pspl_loss, x, x, 1.0, **{name: value})}
    if name in MAP_KEYWORDS["similarity_map"]:
        sentences.add(refused(kind, fragments, backend.similarity_map, x, x, **{name: value}))
    if name in MAP_KEYWORDS["attention_map"]:
        sentences.add(refused(kind, fragments, backend.attention_map, x, x, 1.0, **{name: value}))
    sentences.add(refused(kind, fragments, PSPLLoss, **{name: value}))
    assert len(sentences) == 1


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


@pytest.mark.parametrize("name", ["start_iteration", "calls_per_iteration"])
@pytest.mark.parametrize("value", [2**53 + 1, 2**63, 10**5000], ids=["2^53", "2^63", "10^5000"])
def test_counts_too_large_to_count_on(name, value):
    """They are kept in 64 bits, and made a step of in float64."""
    refused(ValueError, ["expected an integer from", "9007199254740992"], PSPLLoss, **{name: value})


def test_iterations_times_calls_are_counted_too():
    refused(ValueError, ["iteration", "from 0 to 8192"], PSPLLoss, start_iteration=8193, calls_per_iteration=2**40)
    assert PSPLLoss(start_iteration=8192, calls_per_iteration=2**40).iteration == 8192


def test_a_huge_step_is_infinity(backend):
    """No schedule asks for it, but it is a number of at least 0."""
    x, y = image().to(backend.device), image().to(backend.device) + 0.5
    assert torch.equal(backend.pspl_loss(x, y, 10**400), backend.pspl_loss(x, y, math.inf))


def test_forward_mode_is_refused_by_the_kernels(fused):
    """torch takes an operator without a formula for a constant: the derivative would be 0, silently."""
    x, y = torch.rand(1, 1, 8, 8, device=fused.device), torch.rand(1, 1, 8, 8, device=fused.device)
    fragments = ["forward-mode", "reference"]
    refused(RuntimeError, fragments, torch.func.jvp, lambda sr: fused.pspl_loss(sr, y, 1.0), (x,), (y,))
    refused(RuntimeError, fragments, torch.func.jvp, lambda hr: fused.pspl_loss(x, hr, 1.0), (y,), (x,))
    leaf = x.clone().requires_grad_()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaf, y)
        refused(RuntimeError, fragments, fused.pspl_loss, dual, y, 1.0)


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_forward_mode_of_the_reference_is_its_gradient(distance):
    """The attention map is a constant to forward mode as well, which no_grad does not stop."""
    generator = torch.Generator().manual_seed(0)
    x, y, along = torch.rand(3, 1, 1, 8, 9, dtype=torch.float64, generator=generator)

    def loss(sr):
        return pspl_cuda.pspl_loss(sr, y, 1.0, distance=distance, backend="reference")

    _, slope = torch.func.jvp(loss, (x,), (along,))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert slope.item() == pytest.approx((gradient * along).sum().item(), rel=1e-12)


@pytest.fixture
def mesh(tmp_path):
    """One process that is a cluster of its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_distributed_tensors(backend, mesh):
    """Not torch's own words about mixing tensors."""
    x = torch.rand(2, 3, 8, 8)
    sharded = distribute_tensor(x, mesh, [Shard(0)])
    step = distribute_tensor(torch.tensor(1.0), mesh)
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


def test_bad_keyword_is_refused_every_time(backend):
    """The checks are cached by value: True == 1 and 11.0 == 11 must not borrow a good one's result."""
    x = image().to(backend.device)
    backend.pspl_loss(x, x, 1.0, alpha=1, window_size=11)
    for _ in range(2):
        refused(TypeError, ["alpha"], backend.pspl_loss, x, x, 1.0, alpha=True)
        refused(TypeError, ["window_size"], backend.pspl_loss, x, x, 1.0, window_size=11.0)
    refused(TypeError, ["alpha"], backend.pspl_loss, x, x, 1.0, alpha=torch.tensor(1.0))
    refused(TypeError, ["distance"], backend.pspl_loss, x, x, 1.0, distance=["l1"])


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


def test_integers_are_numbers(backend):
    """int where a float is expected is no error."""
    x, y = image().to(backend.device), image().to(backend.device) + 0.5
    whole = backend.pspl_loss(x, y, 1, alpha=1, beta=0, gamma=2, mu=-1, data_range=1, sigma=2)
    assert torch.equal(whole, backend.pspl_loss(x, y, 1.0, sigma=2.0))


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
    assert re.search(r'\.\s+Pass backend="reference" to silence this warning\.$', sentences), sentences


def test_reference_by_name_is_silent(forgetful):
    forgetful.setitem(_library.reasons, "cpu", "no compiler was found.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pspl_cuda.pspl_loss(image(), image(), 1.0, backend="reference")


def test_environment_replaces_auto(forgetful):
    """PSPL_BACKEND is an order too; an explicit backend is not touched by it."""
    forgetful.setitem(_library.reasons, "cuda", "nvcc was not found.")
    forgetful.setenv("PSPL_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="nvcc was not found"):
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


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 20, 24, generator=generator), torch.rand(2, 3, 20, 24, generator=generator)


def test_missing_kernel_falls_back_and_warns_once(monkeypatch, recwarn):
    """users.md: a missing or broken extension must fall back with one clear warning."""
    monkeypatch.setitem(_library.reasons, "cpu", "it was left out by this test.")
    monkeypatch.setattr(functional, "_warned", set())
    monkeypatch.delenv("PSPL_BACKEND", raising=False)
    sr, hr = images()
    expected = pspl_cuda.pspl_loss(sr, hr, 1.0, backend="reference")
    for _ in range(3):
        assert torch.equal(pspl_cuda.pspl_loss(sr, hr, 1.0), expected)
    messages = [str(warning.message) for warning in recwarn if "pspl_cuda" in str(warning.message)]
    assert len(messages) == 1
    assert "it was left out by this test." in messages[0]
    assert 'backend="reference"' in messages[0]


def test_explicit_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(_library.reasons, "cpu", "it was left out by this test.")
    sr, hr = images()
    with pytest.raises(RuntimeError, match="it was left out by this test"):
        pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu")


def test_environment_variable_replaces_auto(monkeypatch, recwarn):
    monkeypatch.setenv("PSPL_BACKEND", "reference")
    monkeypatch.setattr(functional, "_warned", set())
    sr, hr = images()
    assert torch.equal(pspl_cuda.pspl_loss(sr, hr, 1.0), pspl_cuda.pspl_loss(sr, hr, 1.0, backend="reference"))
    assert not [warning for warning in recwarn if "pspl_cuda" in str(warning.message)]
    monkeypatch.setenv("PSPL_BACKEND", "tpu")
    with pytest.raises(ValueError, match="PSPL_BACKEND is 'tpu'"):
        pspl_cuda.pspl_loss(sr, hr, 1.0)
