"""Arbitrary arguments to the public functions give a result or a documented exception with a sentence, the same on every backend.

Each argument is drawn from many good and bad ones, so most calls have one or more bad arguments. A crash would end the test run;
test_cpu_kernel.py looks for reads out of bounds.
"""

from __future__ import annotations

import math
import re
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

import pspl_cuda
from helpers import backends
from helpers.unusual_tensors import Subclass, nested, quantized
from pspl_cuda import PSPLLoss

# ---------------------------------------------------------------- what is drawn

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BAD_DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float8_e5m2,
)
SHAPES = ((1, 3, 8, 8), (3, 8, 8), (1, 1, 1, 1), (2, 1, 3, 2, 5), (1, 2, 13, 1), (4, 9, 4))
BAD_SHAPES = (
    (),
    (3,),
    (8, 8),
    (1, 1, 1, 1, 8, 8),
    (0, 3, 8, 8),
    (1, 3, 0, 8),
    (1, 3, 8, 0),
    (1, 0, 8, 8),
    (1, 3, 8, 9),
)


def make_image(shape, dtype, look):
    image = torch.linspace(-1, 2, max(1, math.prod(shape)))[: math.prod(shape)].reshape(shape).to(dtype)
    return LOOKS[look](image)


LOOKS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "expanded": lambda x: x[..., :1].expand(x.shape) if x.dim() and x.numel() else x,
    "strided": lambda x: torch.stack((x, x), -1)[..., 0],
    "overlapping": lambda x: torch.zeros(99, dtype=x.dtype).as_strided(x.shape, [1] * x.dim()) if x.numel() else x,
    "wants a gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "with nan": lambda x: x * math.nan if x.dtype in DTYPES else x,
    "huge": lambda x: x * 1e30 if x.dtype in DTYPES else x,
    "subclass": lambda x: x.as_subclass(Subclass),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=x.is_floating_point()),
    "inference": lambda x: _in_inference_mode(x),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse() if x.dim() and x.dtype in DTYPES else x,
    "quantized": lambda x: quantized(x.float()),
    "nested": lambda _: nested(torch.strided),
    "jagged": lambda _: nested(torch.jagged),
}
GOOD_LOOKS = ("plain", "transposed", "expanded", "strided", "overlapping", "wants a gradient", "with nan", "huge")


@torch.inference_mode()
def _in_inference_mode(x):
    return x.clone()


IMAGES = st.builds(
    make_image, st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(GOOD_LOOKS)
) | st.builds(
    make_image,
    st.sampled_from(SHAPES + BAD_SHAPES),
    st.sampled_from(DTYPES + BAD_DTYPES),
    st.sampled_from([*LOOKS]),
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.complex_numbers(max_magnitude=10),
    st.lists(st.floats(), max_size=2),
    st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
    st.builds(object),
    st.builds(lambda: np.zeros((1, 3, 8, 8), np.float32)),
    st.builds(lambda: np.float32(1.5)),
    st.builds(lambda: torch.tensor(1.5)),
    st.builds(lambda: torch.ones(1, 3, 8, 8)),
    st.just(int),
)
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-3, 20),
    st.sampled_from([10**400, -(10**400), 10**5000, 2**63, -(2**63), 1e308, 5e-324, 1e-30, 1e30, -0.0]),
    st.builds(lambda kind, value: kind(value), st.sampled_from([np.float16, np.float32, np.float64]), st.floats(0, 9)),
    st.sampled_from([np.float32("inf"), np.float64("nan"), np.int64(2**62), np.uint8(3), np.int8(-3), np.bool_(True)]),
)
STEPS = st.one_of(
    st.floats(0, 5),
    NUMBERS,
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]).map(
        lambda dtype: torch.tensor(2, dtype=dtype)
    ),
    st.sampled_from([math.nan, math.inf, -1.0]).map(torch.tensor),
    st.builds(lambda: torch.tensor(1.0, requires_grad=True)),
    st.builds(lambda: torch.tensor(1.0, device="meta")),
    st.builds(lambda: torch.tensor(1.0).to_sparse()),
    st.builds(lambda: quantized(torch.tensor(1.0))),
)
WORDS = st.sampled_from(
    [
        "l1",
        "l2",
        "charbonnier",
        "L1",
        "zeros",
        "reflect",
        "replicate",
        "same",
        "mean",
        "sum",
        "none",
        "",
        "l1\0",
        "\ud800",
    ]
)
SIZES = st.sampled_from([1, 3, 7, 11, 13, 511, 513, 2, 0, -1, -11, 10**5000, 2**31 - 1, 2**63 - 1])

CONSTANTS = {
    **dict.fromkeys(("data_range", "sigma", "k1", "k2"), NUMBERS),
    "window_size": SIZES,
    "padding": WORDS,
}
PACE = dict.fromkeys(("alpha", "beta", "gamma", "mu"), NUMBERS)
LOSS = {"eps": NUMBERS, "distance": WORDS, "reduction": WORDS, "return_stats": st.booleans()}
MODULE = {
    "loss_weight": NUMBERS,
    "iterations_per_step": NUMBERS,
    "calls_per_iteration": NUMBERS,
    "start_iteration": NUMBERS,
    "total_iterations": NUMBERS,
    "capturable": st.booleans(),
    "backend": WORDS | st.sampled_from(["auto", "cpu", "cuda", "reference"]),
}
STATES = st.one_of(
    st.lists(st.integers(-2, 9) | st.sampled_from([2**53, 2**60, -(2**63)]), max_size=6).map(
        lambda values: torch.tensor(values, dtype=torch.int64)
    ),
    st.lists(st.floats(), max_size=5).map(torch.tensor),
    st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)).map(torch.tensor),
    JUNK,
)


def keywords(*tables):
    """Up to three keywords, seldom of another type altogether."""
    known = {name: strategy for table in tables for name, strategy in table.items()}
    name = st.sampled_from([*known])
    pair = name.flatmap(lambda name: st.tuples(st.just(name), st.one_of(known[name], known[name], known[name], JUNK)))
    return st.lists(pair, max_size=3).map(dict)


# ---------------------------------------------------------------- what may happen


def outcome(function, *args, **kwargs):
    """("value", result) or (exception type, its sentence). Anything undocumented, or without a sentence, fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # auto says once that it falls back
            return "value", function(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        kind, sentence = type(error), str(error)
    # NotImplementedError and UnicodeError, for example, are subclasses, and nobody's promise.
    assert kind in (TypeError, ValueError, RuntimeError), f"{kind.__name__}: {sentence}"
    assert re.search(r"expect|Call|takes|[Pp]ass |not available", sentence), sentence
    assert sentence.endswith("."), sentence
    assert len(sentence) < 400, sentence
    return kind, sentence


def agree(*outcomes):
    """Every backend gives a value, or every one the same sentence."""
    kinds = {(kind, None if kind == "value" else result) for kind, result in outcomes}
    assert len(kinds) == 1, kinds


def assume_memory(*images):
    """A kernel asked for by name refuses images on meta, where the reference traces: test_functional.py tests both."""
    assume(not all(isinstance(image, torch.Tensor) and image.device.type == "meta" for image in images))


def there():
    """The backends that this machine has, as functions that take no backend argument."""
    names = [name for name in backends.selected() if name != "cuda" and backends.why_not(name) is None]
    return [backends.Backend(name) for name in names] or pytest.skip("no backend for CPU tensors")


EXAMPLES = settings(max_examples=6 * settings().max_examples)


@EXAMPLES
@given(
    sr=IMAGES | JUNK,
    hr=IMAGES | JUNK,
    step=STEPS | JUNK,
    given_keywords=keywords(CONSTANTS, PACE, LOSS),
    same=st.booleans(),
)
def test_pspl_loss(sr, hr, step, given_keywords, same):
    """A result has the promised shape and dtype, and each image that requires a gradient gets one."""
    hr = sr if same else hr
    assume_memory(sr, hr)
    outcomes = [outcome(backend.pspl_loss, sr, hr, step, **given_keywords) for backend in there()]
    agree(*outcomes)
    for kind, value in outcomes:
        if kind == "value":
            loss = value[0] if given_keywords.get("return_stats") else value
            assert loss.shape == (sr.shape if given_keywords.get("reduction") == "none" else ())
            assert loss.dtype == (torch.float64 if torch.float64 in (sr.dtype, hr.dtype) else torch.float32)
            if loss.requires_grad:
                loss.sum().backward()


@EXAMPLES
@given(sr=IMAGES | JUNK, hr=IMAGES | JUNK, step=STEPS | JUNK, given_keywords=keywords(CONSTANTS), same=st.booleans())
def test_maps(sr, hr, step, given_keywords, same):
    """A map has the images' shape; M_s is in -1..1 or NaN, M_a in 0..gamma or NaN."""
    hr = sr if same else hr
    assume_memory(sr, hr)
    similarity = [outcome(backend.similarity_map, sr, hr, **given_keywords) for backend in there()]
    attention = [outcome(backend.attention_map, sr, hr, step, **given_keywords) for backend in there()]
    agree(*similarity)
    agree(*attention)
    for outcomes, low, high in ((similarity, -1, 1), (attention, 0, 2)):
        for kind, value in outcomes:
            if kind == "value":
                assert value.shape == sr.shape
                assert not value.requires_grad
                assert ((value >= low) & (value <= high) | value.isnan()).all()


@EXAMPLES
@given(given_keywords=keywords(CONSTANTS, PACE, LOSS, MODULE), iteration=NUMBERS | JUNK, step=st.none() | STEPS | JUNK)
def test_module(given_keywords, iteration, step):
    """What is accepted can be shown, saved, loaded, set and called."""
    kind, loss = outcome(PSPLLoss, **given_keywords)
    if kind != "value":
        return
    assert "iteration" in repr(loss)
    PSPLLoss().load_state_dict(loss.state_dict())
    before = loss.iteration
    kind, _ = outcome(setattr, loss, "iteration", iteration)
    assert loss.iteration == (iteration if kind == "value" else before)
    image = torch.rand(1, 1, 5, 6)
    kind, value = outcome(loss, image, 1 - image, step)
    if kind == "value":
        assert isinstance(value, tuple) == loss.return_stats


@given(backend=WORDS | JUNK | st.sampled_from(["auto", "cpu", "cuda", "reference"]))
def test_backend(backend):
    image = torch.rand(1, 1, 5, 6)
    for function, args in (
        (pspl_cuda.pspl_loss, (image, image, 1.0)),
        (pspl_cuda.similarity_map, (image, image)),
        (PSPLLoss, ()),
        (pspl_cuda.pspl_loss, (image, image, 1.0)),
    ):
        outcome(function, *args, backend=backend)


@EXAMPLES
@given(
    pair=st.sampled_from([*(TABLE := {**CONSTANTS, **PACE, **LOSS, **MODULE})]).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(TABLE[name], JUNK))
    )
)
def test_assignment(pair):
    """An attribute takes what the constructor takes, with the same effect, and refuses the rest with the same sentence."""
    name, value = pair
    assume(name not in ("start_iteration", "capturable") and value is not None)
    loss = PSPLLoss()
    before = repr(loss)
    kind, sentence = outcome(setattr, loss, name, value)
    constructed, same = outcome(PSPLLoss, **{name: value})
    assert kind == constructed
    if kind == "value":
        assert repr(loss) == repr(same)
    else:
        assert (sentence, repr(loss)) == (same, before)


@EXAMPLES
@given(state=STATES, total=st.none() | st.integers(1, 9))
def test_state(state, total):
    """A state of any size and content continues a count that can be saved, or is refused without effect."""
    loss = PSPLLoss(start_iteration=3, calls_per_iteration=2, total_iterations=total)
    before = repr(loss)
    kind, _ = outcome(loss.load_state_dict, {"_extra_state": state})
    assert kind == "value" or repr(loss) == before
    saved = loss.state_dict()
    assert saved["_extra_state"].shape == (4,)
    twin = PSPLLoss(calls_per_iteration=2, total_iterations=total)
    twin.load_state_dict(saved)
    assert (twin.iteration, twin.schedule.calls) == (loss.iteration, loss.schedule.calls)
